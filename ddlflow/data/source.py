"""A source: a table in one or many files, whatever the format, read range by range.

    source = open_source("events/*.csv.gz", spec, data_root)
    for part in ranges(source):
        for batch in read(source, part, ["label", "m_jj"]):
            ...

The ranges depend on the source alone: row groups of Parquet, record batches of Arrow (small ones
together, up to one piece), byte ranges of 64 MiB cut at line ends for CSV and JSON lines, a whole
file where it is gzipped. So the engine and its workers never enter the result.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ddlflow.data import columnar, text
from ddlflow.data import schema as schema_
from ddlflow.data.files import File, list_files, open_file, resolve
from ddlflow.data.known import Types, settled
from ddlflow.data.stray import refuse_strays
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
        dialect: the format, and how CSV is to be read.
        schema: column name -> type, in order; folder columns (key=value) come last.
        files: number -> file; a worker is given only the files that it reads.
        names: columns of the files themselves, in order.
        fingerprint: hash of names, sizes, stamps and dialect: what tells that a source changed.
        rows: their number, where the format states it (Parquet, Arrow).
    """

    location: str
    address: str
    dialect: text.Dialect
    schema: dict[str, pa.DataType]
    files: dict[int, File]
    names: tuple[str, ...]
    fingerprint: str
    rows: int | None

    def only(self, part: Range) -> "Source":
        """The source with the one file that a range needs: small to send."""
        return replace(self, files={part.file: self.files[part.file]})


def open_source(location: str, spec: Data, data_root: Path, known: Types | None = None) -> Source:
    """Finds the files, reads their headers and checks that they agree.

    Args:
        location: a file, a glob, a folder, or an fsspec URL of these; a relative path lies under
            ``data_root``.
        spec: format, header and delimiter; which columns may hold decimals in a text format.
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
    dialect = text.Dialect(kind, spec.header, spec.delimiter)
    schemas: list[pa.Schema] = []
    for number, file in enumerate(files):
        with _reading(file.path):
            schema, units = _layout(address, file, dialect, spec)
        files[number] = replace(file, units=units)
        schema_.check_names(file, schema)
        if schemas:
            schema_.check_same(file, schema, files[0], schemas[0], kind)
        schemas.append(schema)
    # A file with a header alone says nothing of the types: the first one with values does.
    first = next((s for s in schemas if not all(map(pa.types.is_null, s.types))), schemas[0])
    types = dict(zip(first.names, first.types, strict=True))
    if kind in ("csv", "jsonl"):
        types = {
            name: settled(name, type_, known, kind) or schema_.text_type(name, type_, spec)
            for name, type_ in types.items()
        }
    rows = sum(sum(file.units) for file in files) if kind in ("parquet", "arrow") else None
    if rows == 0:
        raise DataError(f"{address} holds no row. Correct data.source.")
    keys = schema_.folder_columns(files, types)
    return Source(
        location=location,
        address=address,
        dialect=dialect,
        schema=types | keys,
        files=dict(enumerate(files)),
        names=tuple(first.names),
        fingerprint=_fingerprint(files, dialect),
        rows=rows,
    )


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
    file = source.files[part.file]
    inside = [name for name in columns if name in source.names]
    # Folder columns alone do not tell how many rows there are: any column of the file does.
    physical = inside or [source.names[0]]
    keys = dict(file.keys)
    with _reading(file.path):
        handle = open_file(source.address, file)
        with handle:
            for batch in _pieces(_batches(source, file, part, handle, physical)):
                arrays = [
                    batch.column(name)
                    if name in source.names
                    else _constant(keys.get(name), source.schema[name], batch.num_rows)
                    for name in columns
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _layout(
    address: str, file: File, dialect: text.Dialect, spec: Data
) -> tuple[pa.Schema, tuple[int, ...]]:
    if file.size == 0:
        raise DataError(f"{file.path} is empty. Remove it from data.source, or write it again.")
    with open_file(address, file) as handle:
        if dialect.format == "parquet":
            return columnar.parquet_layout(handle)
        if dialect.format == "arrow":
            return columnar.arrow_layout(handle)
        block = text.first_block(text.stream_of(handle, file.name, 0, file.size))
        if not block.strip():
            raise DataError(f"{file.path} is empty. Remove it from data.source, or write it again.")
        rows = text.first_rows(block, dialect, file.path)
        refuse_strays(rows, block, dialect, file.path, spec)
        return rows.schema, ()


def _extents(source: Source, file: File) -> list[tuple[int, int]]:
    dialect = source.dialect
    if dialect.format in ("parquet", "arrow"):
        return _groups(file.units)
    if text.is_packed(file.name):
        return [(0, file.size)]
    with _reading(file.path), open_file(source.address, file) as handle:
        block = text.first_block(handle.get_stream(0, file.size))
        start = text.header_bytes(block, dialect)
        return text.cuts(handle, start, file.size, text.RANGE_BYTES) if start < file.size else []


def _groups(units: Sequence[int]) -> list[tuple[int, int]]:
    """Units in turn, small ones together as long as they fit in one piece."""
    groups: list[tuple[int, int]] = []
    start = held = 0
    for index, rows in enumerate(units):
        if index > start and held + rows > PIECE_ROWS:
            groups.append((start, index))
            start, held = index, 0
        held += rows
    if held:
        groups.append((start, len(units)))
    return groups


def _batches(
    source: Source, file: File, part: Range, handle: pa.NativeFile, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    kind = source.dialect.format
    if kind == "parquet":
        return columnar.parquet_batches(handle, part.start, part.stop, columns, PIECE_ROWS)
    if kind == "arrow":
        return columnar.arrow_batches(handle, part.start, part.stop, columns, PIECE_ROWS)
    skip = 0
    if text.is_packed(file.name) and source.dialect.header:
        with open_file(source.address, file) as again:
            block = text.first_block(text.stream_of(again, file.name, 0, file.size))
            skip = text.header_bytes(block, source.dialect)
    types = {name: source.schema[name] for name in columns}
    extent = (part.start, part.stop)
    return text.batches(
        handle,
        file.path,
        extent=extent,
        skip=skip,
        dialect=source.dialect,
        names=source.names,
        columns=types,
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


def _fingerprint(files: list[File], dialect: text.Dialect) -> str:
    facts = [[file.name, file.size, file.stamp] for file in files]
    facts.append([dialect.format, dialect.header, dialect.delimiter])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into one sentence that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path} cannot be read: {said.rstrip('.')}. It is damaged, incomplete or of another "
            "format: write it again, or set data.format."
        ) from error
