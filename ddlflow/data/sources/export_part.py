"""One partition of a table of Spark's or Dask's, written to the storage by the worker that has it.

A file's name is of the attempt that writes it: a task that is tried again, or runs twice at once,
writes another one, and only those that the driver lists in the end count (exported.py).
"""

import base64
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.frames import table_of
from ddlflow.data.sources.schema import decoded
from ddlflow.errors import DataError
from ddlflow.store.files import writing
from ddlflow.store.store import open_store

BLOCK_ROWS = 65_536  # a record batch of a file has as many rows, or as few as hold
BLOCK_BYTES = 32 << 20
_SPARSE = 0  # what pyspark.ml's vectors say of themselves; dense ones are 1


@dataclass(frozen=True, slots=True)
class ExportedPart:
    """What a worker tells of a partition that it wrote.

    Attributes:
        number: of the partition, in the order of the rows.
        name: of the file; empty where there was no row.
        units: rows of each record batch.
        schema: of the file, as `text_of` gives it; of a partition without a row, as far as known.
        lengths: the shortest and the longest vector of each column of vectors.
        first: the key of the first row, as text.
        last: the key of the last row.
        tie: a key that two neighbouring rows share, or empty.
    """

    number: int
    name: str
    units: tuple[int, ...]
    schema: str
    lengths: dict[str, tuple[int, int]] = field(default_factory=dict)
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    tie: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ExportedPart":
        """The inverse of ``to_json``."""
        known: dict[str, Any] = dict(value)
        for name in ("units", "first", "last"):
            known[name] = tuple(value[name])
        known["lengths"] = {name: (low, high) for name, (low, high) in value["lengths"].items()}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes a partition on the worker that has it: small, and importable there by name.

    Attributes:
        place: location of a store that every worker sees.
        key: columns that tell rows apart, by which they come sorted.
        vectors: columns of pyspark.ml's vectors.
    """

    place: str
    key: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()

    def __call__(self, number: int, frames: Iterable[Any]) -> dict[str, Any]:
        """Writes the rows of a partition.

        Args:
            number: of the partition.
            frames: record batches, or frames as `frames.table_of` takes them.

        Returns:
            An `ExportedPart` as JSON values.

        Raises:
            DataError: what are no frames, or frames of unlike columns.
            DdlflowError: the storage failed.
        """
        watch = _Keys(self.key)
        lengths: dict[str, tuple[int, int]] = {}
        blocks = _blocks(self._plain(frames, lengths, watch))
        first = next(blocks)
        schema = text_of(first.schema)
        if not first.num_rows:
            return ExportedPart(number, "", (), schema).to_json()
        name = f"{number:06d}-{uuid.uuid4().hex}.arrow"
        units = []
        with (
            writing(f"{self.place}/{name}"),
            open_store(self.place).writing(name) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, first.schema) as file,
        ):
            for block in chain([first], blocks):
                file.write_batch(block)
                units.append(block.num_rows)
        part = ExportedPart(
            number, name, tuple(units), schema, lengths, watch.first, watch.last, watch.tie
        )
        return part.to_json()

    def _plain(
        self, frames: Iterable[Any], lengths: dict[str, tuple[int, int]], watch: "_Keys"
    ) -> Iterator[pa.RecordBatch]:
        for frame in frames:
            batches = [frame] if isinstance(frame, pa.RecordBatch) else _cut(frame)
            for batch in batches:
                arrays = []
                for column, of in zip(batch.columns, batch.schema, strict=True):
                    array = dense(column) if of.name in self.vectors else canonical(column)
                    arrays.append(array)
                    if of.name in self.vectors and array.null_count < len(array):
                        own = pc.min_max(pc.list_value_length(array)).as_py()
                        low, high = lengths.get(of.name, (own["min"], own["max"]))
                        lengths[of.name] = min(low, own["min"]), max(high, own["max"])
                found = pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
                watch.look(found)
                yield found


def _cut(frame: Any) -> list[pa.RecordBatch]:
    found = table_of(frame)
    return found.to_batches(BLOCK_ROWS) or [pa.RecordBatch.from_pylist([], found.schema)]


class _Keys:
    """Looks for neighbouring rows with one key, and keeps the keys at both ends."""

    def __init__(self, key: tuple[str, ...]) -> None:
        self._key = key
        self._before: pa.RecordBatch | None = None  # the last row
        self.first: tuple[str, ...] = ()
        self.last: tuple[str, ...] = ()
        self.tie = ""

    def look(self, batch: pa.RecordBatch) -> None:
        if not self._key or not batch.num_rows:
            return
        own = batch.select(list(self._key))
        for name, type_ in zip(own.schema.names, own.schema.types, strict=True):
            if pa.types.is_nested(type_):
                raise DataError(f"Column {name} of the key is of type {type_}. Name single values.")
        joined = pa.Table.from_batches([b for b in (self._before, own) if b is not None])
        same = np.ones(joined.num_rows - 1, dtype=bool)
        for column in joined.columns:
            same &= _alike(column.combine_chunks())
        if same.any() and not self.tie:
            self.tie = ", ".join(_values(joined, int(np.argmax(same)), named=True))
        self.first = self.first or tuple(_values(joined, 0))
        self.last = tuple(_values(joined, joined.num_rows - 1))
        self._before = own.slice(own.num_rows - 1)


def _alike(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether each value but the last is the next one; nulls are alike, and so are NaN."""
    before, after = array[:-1], array[1:]
    same = pc.fill_null(pc.equal(before, after), False)
    same = pc.or_(same, pc.and_(_nothing(before), _nothing(after)))
    found: npt.NDArray[np.bool_] = same.to_numpy(zero_copy_only=False)
    return found


def _nothing(array: pa.Array) -> pa.Array:
    return pc.is_null(array, nan_is_null=pa.types.is_floating(array.type))


def _values(table: pa.Table, row: int, *, named: bool = False) -> list[str]:
    values = {name: table.column(name)[row].as_py() for name in table.column_names}
    return [f"{name} {value}" if named else repr(value) for name, value in values.items()]


def canonical(array: pa.Array) -> pa.Array:
    """The same values in the one type that stands for theirs: times with a zone in UTC."""
    if pa.types.is_dictionary(array.type):
        array = decoded(array)
    wanted = canonical_type(array.type)
    return array if array.type == wanted else array.cast(wanted)


def canonical_type(type_: pa.DataType) -> pa.DataType:
    """One type for all in which a framework may hand over the same values."""
    is_ = pa.types
    if is_.is_timestamp(type_) and type_.tz is not None:
        return pa.timestamp(type_.unit, "UTC")
    if is_.is_large_string(type_) or is_.is_string_view(type_):
        return pa.string()
    if is_.is_large_binary(type_) or is_.is_binary_view(type_):
        return pa.binary()
    if is_.is_list(type_) or is_.is_large_list(type_):
        return pa.list_(canonical_type(type_.value_type))
    if is_.is_fixed_size_list(type_):
        return pa.list_(canonical_type(type_.value_type), type_.list_size)
    return type_


def dense(vectors: pa.StructArray) -> pa.ListArray:
    """pyspark.ml's vectors, dense and sparse ones, as lists of their numbers."""
    kinds, sizes, indices, values = vectors.flatten()
    missing = kinds.is_null().to_numpy(zero_copy_only=False)
    is_sparse = pc.fill_null(pc.equal(kinds, _SPARSE), False).to_numpy(zero_copy_only=False)
    if not is_sparse.any():
        return values
    counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    lengths = np.where(is_sparse, pc.fill_null(sizes, 0).to_numpy(), counts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.zeros(offsets[-1], dtype=np.float64)
    given = values.flatten().to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(given)) - np.repeat(np.cumsum(counts) - counts, counts)
    sparse = is_sparse[row]
    column[sparse] = indices.filter(pa.array(is_sparse)).flatten().to_numpy(zero_copy_only=False)
    numbers[offsets[row] + column] = given
    mask = pa.array(missing) if missing.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(numbers), mask=mask)


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches worth a read of their own, at least one, all of one schema."""
    held: list[pa.RecordBatch] = []
    first: pa.RecordBatch | None = None
    num_yielded = 0
    for batch in batches:
        first = batch if first is None else first
        held += [_like(first, batch)] if batch.num_rows else []
        if sum(b.num_rows for b in held) >= BLOCK_ROWS or sum(map(_size, held)) >= BLOCK_BYTES:
            yield _joined(held)
            num_yielded += 1
            held = []
    if held:
        yield _joined(held)
    elif not num_yielded:
        yield first if first is not None else pa.RecordBatch.from_arrays([], names=[])


def _size(batch: pa.RecordBatch) -> int:
    return int(batch.get_total_buffer_size())


def _like(first: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch.schema == first.schema:
        return batch
    try:
        return batch.select(first.schema.names).cast(first.schema)
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"Frames of one partition have unlike columns: {' '.join(str(error).split())}. Give "
            "all of them the same names and types."
        ) from error


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of several; the columns of one alone may share memory with much more."""
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def text_of(schema: pa.Schema) -> str:
    """A schema as text, without what its maker noted on it."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def schema_of(text: str) -> pa.Schema:
    """The inverse of `text_of`."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
