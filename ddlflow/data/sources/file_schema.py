"""What one file of a source says of itself: its columns, their types, its parts."""

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from ddlflow.data.sources import columnar, jsonl, row_blocks, source_notes, text
from ddlflow.data.sources.dialect import Dialect
from ddlflow.data.sources.encoding import refuse_other_encodings
from ddlflow.data.sources.files import File, open_file
from ddlflow.data.sources.mixed_types import refuse_mixed_types
from ddlflow.data.sources.parse_errors import TextBlock
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data


@dataclass(frozen=True, slots=True)
class FileSchema:
    """What a file says of itself.

    Attributes:
        schema: its columns; of a text format with the types that its values suggest.
        units: rows of each row group or record batch; none for text.
        index: its columns that were the index of a frame.
        notes: what a user should know of its values.
    """

    schema: pa.Schema
    units: tuple[int, ...] = ()
    index: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Tells the label and the features, by name: ``is_feature`` as a value that can be a key."""

    label: str
    only: frozenset[str] | None
    never: frozenset[str | None]

    @classmethod
    def of(cls, spec: Data) -> "_Wanted":
        is_all = spec.features == "all"
        only = None if is_all else frozenset(spec.features)
        return cls(spec.label, only, frozenset([spec.split.column, *(spec.exclude * is_all)]))

    def __call__(self, name: str) -> bool:
        is_named = self.only is None or name in self.only
        return name == self.label or (is_named and name not in self.never)


def file_schema(
    address: str, file: File, dialect: Dialect, spec: Data, *, is_first: bool
) -> FileSchema:
    """Looks into a file: at its schema, at its first rows, or (JSON) at all of them.

    Args:
        address: of the source.
        file: to be looked into.
        dialect: how it is read.
        spec: which columns are used.
        is_first: of the source's files; the notes are made of that one.

    Raises:
        DataError: empty, or not what it should be, with the line.
    """
    if file.size == 0:
        raise _empty(file)
    with open_file(address, file) as handle:
        if dialect.format in ("parquet", "arrow"):
            is_parquet = dialect.format == "parquet"
            look = columnar.parquet_layout if is_parquet else columnar.arrow_layout
            schema, units = look(handle)
            return FileSchema(schema, units, source_notes.index_of_frame(schema))
        if dialect.format == "jsonl":
            return _of_json(handle, address, file, dialect, spec)
        return _of_csv(handle, file, dialect, spec, is_first)


def _of_csv(
    handle: pa.NativeFile, file: File, dialect: Dialect, spec: Data, is_first: bool
) -> FileSchema:
    block = row_blocks.first_block(handle, file.name, file.size, dialect, text.SCHEMA_BYTES)
    if not block.strip():
        raise _empty(file)
    refuse_other_encodings(block, f"{file.path}, line", 0, dialect)
    rows = text.first_rows(block, dialect, file.path, spec.categorical)
    begin = row_blocks.header_bytes(block, dialect)
    before = block.count(b"\n", 0, begin) or block.count(b"\r", 0, begin)
    passage = TextBlock(f"{file.path}, line", before, block[begin:], dialect)
    refuse_mixed_types(rows, passage, spec)
    notes: list[str] = []
    if is_first:
        texts = text.as_written(block, dialect, rows)
        notes = source_notes.note_missing(texts, dialect, spec)
    return FileSchema(rows.schema, index=source_notes.index_of_text(rows), notes=tuple(notes))


def _of_json(
    handle: pa.NativeFile, address: str, file: File, dialect: Dialect, spec: Data
) -> FileSchema:
    # All stages of a command ask for it; a file without a stamp may be another one by then.
    look = _json_types if file.stamp else _json_types.__wrapped__
    wanted = _Wanted.of(spec)
    types = look(address, file, dialect, wanted)
    first = row_blocks.first_block(handle, file.name, file.size, dialect, text.SCHEMA_BYTES)
    if not first.strip():
        raise _empty(file)
    used = {name: type_ for name, type_ in types.items() if wanted(name)}
    where = f"{file.path}, {row_blocks.unit_of(handle, file.name, file.size, dialect)}"
    rows = jsonl.parse(first, dialect, used)
    refuse_mixed_types(rows, TextBlock(where, 0, first, dialect), spec)
    return FileSchema(pa.schema(list(types.items())))


@lru_cache(maxsize=4096)
def _json_types(
    address: str, file: File, dialect: Dialect, wanted: _Wanted
) -> dict[str, pa.DataType]:
    """The columns of a file of JSON. Every row may bring a key: so all of it is read."""
    with open_file(address, file) as handle:
        where = f"{file.path}, {row_blocks.unit_of(handle, file.name, file.size, dialect)}"
        whole = (0, file.size)
        blocks = row_blocks.blocks(handle, file.name, whole, dialect, text.SCHEMA_BYTES)
        return jsonl.types_of_file(blocks, dialect, where, wanted)


def _empty(file: File) -> DataError:
    return DataError(f"{file.path} is empty. Remove it from data.source, or write it again.")
