"""A table of Spark's or Dask's that was exported: one sequence of rows in files of its workers.

Its ranges are cut at fixed numbers of rows, so neither the partitions nor the files enter them. The
manifest is written last; what it does not list is of a task that was tried again, and is nothing.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources import columnar
from ddlflow.data.sources import source as source_
from ddlflow.data.sources.derive import Derived, bind
from ddlflow.data.sources.export_part import ExportedPart, schema_of, text_of
from ddlflow.data.sources.files import reading
from ddlflow.data.sources.schema import as_read, conform
from ddlflow.data.sources.source import Range, in_pieces
from ddlflow.errors import DataError
from ddlflow.spec.data import Data
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store

NAME = "ddlflow-table.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file of an exported table.

    Attributes:
        name: in the table's store.
        first: the number of its first row in the table.
        units: rows of each record batch.
    """

    name: str
    first: int
    units: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The number of the row after its last."""
        return self.first + sum(self.units)


@dataclass(frozen=True, slots=True)
class Exported:
    """A ``Source`` that is an exported table.

    Attributes:
        location: of its manifest, as it was given.
        folder: location of the store that it lies in.
        shown: what was exported, in words.
        schema: column name -> type, in order; those that were left out come after the others,
            derived ones last.
        types: of the columns that were exported, as they are read before they are conformed.
        files: in the order of their rows; a worker is given only those that it reads.
        rows: of the whole table.
        fingerprint: hash of the columns and of every value.
        notes: what a user should know of how it is read.
        derived: the columns that are computed, in the order of evaluation.
    """

    location: str
    folder: str
    shown: str
    schema: dict[str, pa.DataType]
    types: dict[str, pa.DataType]
    files: tuple[ExportedFile, ...]
    rows: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    derived: tuple[Derived, ...] = ()
    num_bytes: int | None = None

    @property
    def address(self) -> str:
        return f"{self.folder}/{NAME}"

    @property
    def index(self) -> tuple[str, ...]:
        return ()

    @property
    def summary(self) -> str:
        return f"{self.shown}, exported"

    @property
    def untyped(self) -> Collection[str]:
        return ()

    @property
    def missing_words(self) -> tuple[str, ...]:
        return ()

    def as_text(self, names: Iterable[str]) -> "Exported":
        return self

    def verbatim(self, names: Iterable[str]) -> "Exported":
        return self

    def ranges(self) -> list[Range]:
        size = source_.rows_of_piece(self.types)
        starts = range(0, self.rows, size)
        return [Range(k, 0, at, min(at + size, self.rows)) for k, at in enumerate(starts)]

    def only(self, *parts: Range) -> "Exported":
        wanted = (
            f for f in self.files if any(f.first < p.stop and p.start < f.stop for p in parts)
        )
        return replace(self, files=tuple(wanted))

    def share(self, part: Range) -> float:
        return (part.stop - part.start) / source_.rows_of_piece(self.types)

    def extremes(self, part: Range, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        return {}

    def without_nulls(self, part: Range, names: Iterable[str]) -> Collection[str]:
        return ()

    def place(self, part: Range) -> str:
        return f"{self.shown}, rows {part.start + 1:,} to {part.stop:,}"

    def converted(self, place: Store, names: Sequence[str]) -> "Exported":
        return self

    def batches(self, part: Range, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        store = open_store(self.folder)
        for name in names:
            if name not in self.types:
                raise DataError(
                    f"{self.shown}: column {name} is of type {self.schema[name]}, so it was not "
                    "exported. Select its fields as columns of their own."
                )
        for file in self.files:
            start, stop = max(part.start, file.first), min(part.stop, file.stop)
            if start >= stop:
                continue
            for batch in _rows_of(store, file, (start, stop), names, self.place(part)):
                arrays = [
                    conform(
                        as_type(batch.column(name), self.types[name]),
                        self.schema[name],
                        name,
                        self.address,
                    )
                    for name in names
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(names))


def _rows_of(
    store: Store, file: ExportedFile, extent: tuple[int, int], names: Sequence[str], told: str
) -> Iterator[pa.RecordBatch]:
    """The rows [start, stop) of the table, which all lie in one file."""
    start, stop = extent
    bounds = np.cumsum([file.first, *file.units])
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    last = int(np.searchsorted(bounds, stop, side="left"))
    where = f"{store.location}/{file.name}"
    with reading(f"{told}: {where}"):
        try:
            path = store.local(file.name)
            handle = pa.OSFile(str(path), "rb")
        except FileNotFoundError as error:
            raise DataError(
                f"{told}: {where} is gone. Run the same command with --fresh: it exports the table "
                "again."
            ) from error
        with handle:
            at = int(bounds[first])
            size = max(file.units)
            for batch in columnar.arrow_batches(handle, first, last, names, size):
                begin, end = max(start - at, 0), min(stop - at, batch.num_rows)
                at += batch.num_rows
                yield batch.slice(begin, end - begin)


def as_type(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """A file's column in the type of the whole table: lists of one length as tensors, wide numbers.

    Raises:
        DataError: a value that does not fit.
    """
    if array.type == type_:
        return array
    if pa.types.is_fixed_size_list(type_) and pa.types.is_list(array.type):
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        whole = pa.FixedSizeListArray.from_arrays(array.drop_null().flatten(), type=type_)
        if valid.all():
            return whole
        return whole.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
    try:
        return array.cast(type_)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"A column is of type {array.type} in one partition and of type {type_} in another, "
            f"and a value does not fit: {error}. Give it one type in the table."
        ) from error


def open_exported(location: str, spec: Data) -> Exported:
    """Opens an exported table.

    Args:
        location: of its manifest.
        spec: which columns are text; what is derived.

    Raises:
        DataError: it is gone, or of another ddlflow; a derived column that cannot be computed.
    """
    known = documents.load(open_store(location.rpartition("/")[0]), NAME)
    if known is None or known["format"] != _FORMAT:
        what = "is gone or damaged" if known is None else "is of another version of ddlflow"
        raise DataError(f"{location} {what}. Run the command that exported it with --fresh.")
    return _of_manifest(location, known, spec)


def _of_manifest(location: str, known: dict[str, Any], spec: Data | None) -> Exported:
    own = schema_of(known["schema"])
    types = dict(zip(own.names, own.types, strict=True))
    schema: dict[str, pa.DataType] = dict(types)
    derived: tuple[Derived, ...] = ()
    if spec is not None:
        schema = {n: as_read(n, t, spec, is_text_format=False) for n, t in types.items()}
        left_out = schema_of(known["left_out"])
        schema |= dict(zip(left_out.names, left_out.types, strict=True))
        derived = bind(schema, spec)
    return Exported(
        location=location,
        folder=location.rpartition("/")[0],
        shown=known["shown"],
        schema=schema | {column.name: column.type for column in derived},
        types=types,
        files=_files(known["files"]),
        rows=known["rows"],
        fingerprint=known["digest"],
        notes=tuple(known["notes"]),
        derived=derived,
        num_bytes=known["bytes"],
    )


def _files(listed: Iterable[Sequence[Any]]) -> tuple[ExportedFile, ...]:
    found, first = [], 0
    for name, units in listed:
        found.append(ExportedFile(name, first, tuple(units)))
        first = found[-1].stop
    return tuple(found)


def seal(
    store: Store,
    parts: Iterable[ExportedPart],
    *,
    shown: str,
    notes: Sequence[str],
    key: str,
    left_out: pa.Schema | None = None,
    map_over: Callable[[Callable[[Any], Any], list[Any], str], Iterable[Any]],
) -> Exported:
    """Makes what workers wrote a table: reads it once for its hash, and writes the manifest.

    Args:
        store: that they wrote to.
        parts: what they told.
        shown: what was exported, in words.
        notes: what a user should know of it.
        key: where the table's key stands in the pipeline, for messages.
        left_out: columns of the table that were not exported.
        map_over: ``map_over(function, items, name)`` of the engine.

    Raises:
        DataError: no row, rows that the key does not tell apart, columns that differ by partition,
            vectors of unlike lengths.
    """
    listed = sorted(parts, key=lambda part: part.number)
    _check_key(listed, shown, key)
    schema = _schema_of(listed, shown)
    whole = [part for part in listed if part.name]
    rows = sum(sum(part.units) for part in whole)
    if not rows:
        raise DataError(f"{shown} holds no row. Correct {key.rpartition('.')[0]}.")
    sizes = store.sizes()
    unseen = next((part.name for part in whole if part.name not in sizes), None)
    if unseen is not None:
        raise DataError(
            f"{shown}: a worker wrote {store.location}/{unseen}, which is not seen from here. Set "
            "storage in the site file to a folder that every worker sees, or to a bucket (s3://...)."
        )
    known: dict[str, Any] = {
        "format": _FORMAT,
        "shown": shown,
        "notes": list(notes),
        "rows": rows,
        "bytes": sum(sizes[part.name] for part in whole),
        "schema": text_of(schema),
        "left_out": text_of(left_out if left_out is not None else pa.schema([])),
        "files": [[part.name, list(part.units)] for part in whole],
        "digest": "",
    }
    plain = _of_manifest(f"{store.location}/{NAME}", known, None)
    tasks = [(plain.only(part), part) for part in plain.ranges()]
    digests = list(map_over(_digest_of, tasks, "hash"))
    said = json.dumps([[[n, str(t)] for n, t in plain.types.items()], digests])
    known["digest"] = hashlib.sha256(said.encode()).hexdigest()
    documents.save(store, NAME, known)
    for stranger in {*sizes} - {NAME, *(part.name for part in whole)}:
        store.remove(stranger)
    return replace(plain, fingerprint=known["digest"])


def _check_key(parts: Sequence[ExportedPart], shown: str, key: str) -> None:
    tie = next((part.tie for part in parts if part.tie), "")
    ends = [(part.first, part.last) for part in parts if part.first]
    for (_, last), (first, _) in itertools.pairwise(ends):
        tie = tie or (", ".join(first) if first == last else "")
    if tie:
        raise DataError(
            f"{key} does not tell the rows of {shown} apart: two have {tie}, and nothing says "
            "which comes first. Add columns to it, or leave it out: then a run cannot be repeated "
            "exactly."
        )


def _schema_of(parts: Sequence[ExportedPart], shown: str) -> pa.Schema:
    """The columns of all partitions; vectors of one length are tensors."""
    found = [schema_of(part.schema) for part in parts if part.name]
    try:
        schema = pa.unify_schemas(found, promote_options="permissive") if found else pa.schema([])
    except pa.ArrowException as error:
        raise DataError(
            f"{shown}: its partitions have unlike columns: {' '.join(str(error).split())}. Give "
            "all of them the same names and types."
        ) from error
    spans: dict[str, tuple[int, int]] = {}
    for part in parts:
        for name, (low, high) in part.lengths.items():
            before = spans.get(name, (low, high))
            spans[name] = min(before[0], low), max(before[1], high)
    for name, (low, high) in spans.items():
        if low != high:
            raise DataError(
                f"{shown}: column {name} holds vectors of {low} and of {high} numbers. Give all of "
                "them one length, as VectorAssembler does."
            )
        place = schema.get_field_index(name)
        schema = schema.set(place, pa.field(name, pa.list_(pa.float64(), low)))
    return schema


def _digest_of(task: tuple[Exported, Range]) -> str:
    """The hash of a range's values, on a worker; however they lie in memory."""
    source, part = task
    digest = hashlib.sha256()
    for piece in in_pieces(source.batches(part, list(source.types))):
        for column in piece.columns:
            _add(digest, column)
    return digest.hexdigest()


def _add(digest: Any, array: pa.Array) -> None:
    """Adds an array's values: which are null, and those that are not."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if array.null_count:
        array = array.drop_null()
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        digest.update(pc.list_value_length(array).to_numpy().astype("<i8").tobytes())
        _add(digest, array.flatten())
    else:  # what is sent of it starts at its first value, wherever that lay
        digest.update(pa.RecordBatch.from_arrays([array], names=[""]).serialize())
