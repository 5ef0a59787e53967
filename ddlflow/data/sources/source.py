"""A source: a table in one or many files, whatever the format, read range by range.

    source = open_source("events/*.csv.gz", spec, data_root)
    for part in ranges(source):
        for batch in read(source, part, ["label", "m_jj"]):
            ...

The ranges depend on the source alone: row groups of Parquet, record batches of Arrow (small ones
together), 64 MiB of whole rows of text, a whole file where it is packed. So the engine and its
workers never enter the result.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from ddlflow.data.sources import columnar, jsonl, lines, noted, text
from ddlflow.data.sources import schema as schema_
from ddlflow.data.sources.derive import Derived, bind, evaluate, expressions, needed, read_by
from ddlflow.data.sources.derive_products import wants_products
from ddlflow.data.sources.dialect import Dialect, dialect_of
from ddlflow.data.sources.files import File, list_files, open_file, reading, resolve, stamped
from ddlflow.data.sources.known import Types, settled
from ddlflow.data.sources.layout import Layout, layout
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

PIECE_ROWS = 262_144  # rows held at once; 28 float32 columns are 28 MiB


@dataclass(frozen=True, slots=True)
class Range:
    """A part of a source that is read on its own.

    Attributes:
        index: its number, in row order.
        file: the number of its file.
        start: first row group, record batch or byte.
        stop: the one after the last.
    """

    index: int
    file: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Source:
    """A table in files. Holds no open handle: it travels to workers.

    Attributes:
        location: as it was given.
        address: absolute path or URL.
        dialect: the format, and how text is to be read.
        schema: column name -> type, in order; folder columns (key=value) come after those of the
            files, derived ones last.
        files: number -> file; a worker is given only the files that it reads.
        names: columns of the files themselves, in order.
        fingerprint: hash of names, sizes, stamps and dialect: what tells that a source changed.
        rows: their number, where the format states it (Parquet, Arrow).
        index: columns that were the index of the frame that was written: no features by default.
        notes: what a user should know of how it is read.
        derived: the columns that are computed, in the order of evaluation.
    """

    location: str
    address: str
    dialect: Dialect
    schema: dict[str, pa.DataType]
    files: dict[int, File]
    names: tuple[str, ...]
    fingerprint: str
    rows: int | None
    index: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    derived: tuple[Derived, ...] = ()

    def only(self, part: Range) -> "Source":
        """The source with the one file that a range needs: small to send."""
        return replace(self, files={part.file: self.files[part.file]})

    def as_text(self, names: Iterable[str]) -> "Source":
        """The source with columns of its files read as text."""
        texts = dict.fromkeys((name for name in names if name in self.names), pa.string())
        return replace(self, schema={**self.schema, **texts})

    def verbatim(self, names: Iterable[str]) -> "Source":
        """The source with columns of a CSV file as the text that stands there, nothing missing."""
        return replace(self.as_text(names), dialect=replace(self.dialect, missing=()))


def open_source(location: str, spec: Data, data_root: Path, known: Types | None = None) -> Source:
    """Finds the files, reads their headers and checks that they agree.

    Args:
        location: a file, a glob, a folder, or an fsspec URL of these; a relative path lies under
            ``data_root``.
        spec: format, header and delimiter; which columns may hold decimals in a text format; what
            is derived.
        data_root: the site's folder of sources.
        known: what columns of a text format are parsed as, where a model was trained on them
            (``Columns.parsed``) or another source has them; else their first rows suggest it.

    Raises:
        DataError: nothing there, unreadable, empty, damaged, or files that differ in columns.
    """
    known = known or {}
    texts = [name for name, type_ in known.items() if pa.types.is_string(type_)]
    spec = spec.model_copy(update={"categorical": [*spec.categorical, *texts]})  # no stray there
    address = resolve(location, data_root)
    kind, files = list_files(address, spec.format)
    dialect = dialect_of(kind, spec)
    is_text_format = kind in ("csv", "jsonl")
    found = _layouts(address, files, dialect, spec)
    files = [replace(file, units=each.units) for file, each in zip(files, found, strict=True)]
    over_files = jsonl.types_of_files if kind == "jsonl" else schema_.types_of
    types = over_files([each.schema for each in found])
    names = tuple(types)
    blank = noted.blank_columns(types, dialect, spec)
    read = read_by(expressions(spec))
    wide = {*types} if wants_products(spec) else read & {*types}
    types |= schema_.widened([each.schema for each in found], wide)
    types = {
        name: (settled(name, type_, known, kind) if is_text_format else None)
        or schema_.as_read(name, type_, spec, is_text_format=is_text_format, computed_from=read)
        for name, type_ in types.items()
        if name not in blank
    }
    rows = sum(sum(file.units) for file in files) if not is_text_format else None
    if rows == 0:
        raise DataError(f"{address} holds no row. Correct data.source.")
    index = tuple(name for name in found[0].index if all(name in each.index for each in found))
    notes = [*noted.note_unnamed(names, blank, index, dialect), *noted.note_index(index, spec)]
    notes += [*found[0].notes, *noted.note_hashed(files)]
    types |= schema_.folder_columns(files, types, spec)
    derived = bind(types | {name: known[name] for name in read & {*known} & {*types}}, spec, index)
    return Source(
        location=location,
        address=address,
        dialect=dialect,
        schema=types | {column.name: column.type for column in derived},
        files=dict(enumerate(files)),
        names=names,
        fingerprint=_fingerprint([stamped(address, file) for file in files], dialect),
        rows=rows,
        index=index,
        notes=tuple(notes),
        derived=derived,
    )


def _layouts(address: str, files: list[File], dialect: Dialect, spec: Data) -> list[Layout]:
    """What each file says of itself: all have the same columns."""
    found: list[Layout] = []
    for file in files:
        with reading(file.path):
            each = layout(address, file, dialect, spec, is_first=not found)
        schema_.check_names(file, each.schema)
        if found:
            schema_.check_same(file, each.schema, files[0], found[0].schema, dialect.format)
        found.append(each)
    return found


def ranges(source: Source) -> list[Range]:
    """Cuts a source into ranges, in row order. Text files are read around each cut only.

    Raises:
        DataError: a text file that cannot be read.
    """
    found: list[Range] = []
    for number, file in source.files.items():
        for start, stop in _extents(source, file):
            found.append(Range(len(found), number, start, stop))
    return found


def read(source: Source, part: Range, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a range, in order, in pieces of ``PIECE_ROWS`` rows (the last may be shorter).

    Holds a few pieces at once, whatever the size of a row group or of a gzipped file.

    Args:
        source: from ``open_source``.
        part: from ``ranges``.
        columns: names in ``source.schema``; the batches have them in this order.

    Raises:
        DataError: a value or a row that does not fit, a damaged file.
    """
    derived, own = needed(columns, source.derived)
    pieces = _read_own(source, part, own)
    yield from (evaluate(piece, columns, derived) for piece in pieces) if derived else pieces


def _read_own(source: Source, part: Range, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """As ``read``, of the columns that the files and their folders have."""
    file = source.files[part.file]
    inside = [name for name in columns if name in source.names]
    # Folder columns alone do not tell how many rows there are: any column of the file does.
    physical = inside or [next(name for name in source.names if name in source.schema)]
    keys = dict(file.keys)
    with reading(file.path):
        handle = open_file(source.address, file)
        with handle:
            for batch in _pieces(_batches(source, file, part, handle, physical)):
                arrays = [
                    schema_.conform(batch.column(name), source.schema[name], name, file.path)
                    if name in source.names
                    else _constant(keys.get(name), source.schema[name], batch.num_rows)
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _extents(source: Source, file: File) -> list[tuple[int, int]]:
    if source.dialect.format in ("parquet", "arrow"):
        return columnar.groups(file.units, PIECE_ROWS)
    return _cuts(source.address, file, source.dialect, text.RANGE_BYTES, text.SCHEMA_BYTES)


@lru_cache(maxsize=4096)
def _cuts(
    address: str, file: File, dialect: Dialect, range_bytes: int, schema_bytes: int
) -> list[tuple[int, int]]:
    """Where a text file is cut: the same for the same file, and asked for by several stages."""
    with reading(file.path), open_file(address, file) as handle:
        if lines.is_whole(handle, file.name, file.size, dialect):
            return [(0, file.size)]
        block = lines.first_block(handle, file.name, file.size, dialect.of_bytes(), schema_bytes)
        start = lines.header_bytes(block, dialect)
        if start >= file.size:
            return []
        return lines.cuts(handle, (start, file.size), dialect, range_bytes)


def _batches(
    source: Source, file: File, part: Range, handle: pa.NativeFile, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    kind = source.dialect.format
    if kind == "parquet":
        return columnar.parquet_batches(handle, part.start, part.stop, columns, PIECE_ROWS)
    if kind == "arrow":
        return columnar.arrow_batches(handle, part.start, part.stop, columns, PIECE_ROWS)
    wanted = {name: source.schema[name] for name in columns}
    # A column without a name has to stay as empty as it was in the first rows.
    blank = {name: pa.null() for name in source.names if name not in source.schema}
    return text.batches(
        handle,
        file.path,
        extent=(part.start, part.stop),
        dialect=source.dialect,
        names=source.names,
        columns=wanted | blank,
    )


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly ``PIECE_ROWS``, but the last."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + batch.num_rows >= PIECE_ROWS:
            cut = PIECE_ROWS - rows
            yield _joined([*held, batch.slice(0, cut)])
            batch, held, rows = batch.slice(cut), [], 0  # noqa: PLW2901 - what is left of it
        if batch.num_rows:
            held.append(batch)
            rows += batch.num_rows
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    batches = [batch for batch in batches if batch.num_rows] or batches[:1]
    if len(batches) == 1:
        return batches[0]
    joined = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if len(joined) != 1:  # 2 GiB of text in one column of one piece
        raise DataError(
            f"{PIECE_ROWS} rows hold more than 2 GiB in one column. Exclude that column."
        )
    return joined[0]


def _constant(value: str | None, type_: pa.DataType, rows: int) -> pa.Array:
    number = int(value) if value is not None and pa.types.is_integer(type_) else value
    return pa.repeat(pa.scalar(number, type_), rows)


def _fingerprint(files: list[File], dialect: Dialect) -> str:
    facts: list[object] = [[file.name, file.size, file.stamp] for file in files]
    facts.append(asdict(dialect))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
