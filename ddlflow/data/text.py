"""CSV and JSON lines: cut at line ends, parsed block by block in bounded memory.

A line end is taken to end a row. JSON guarantees that; in CSV a quoted value may hold a line break,
and whether a line end is one depends on all bytes before it. So a cut that falls inside a quoted
value is detected and refused, never read wrongly; such a file can be converted to Parquet.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from ddlflow.errors import DataError

RANGE_BYTES = 64 << 20
BLOCK_BYTES = 8 << 20  # parsed at once: large enough that the calls cost nothing, small in memory
# The parser's own block. 29 columns of doubles parsed 1.5 to 2.2 times as fast in blocks of 1 MiB
# as in ones of 8 or 16 MiB, which leave the cache (measured).
PARSE_BYTES = 1 << 20
SCHEMA_BYTES = 4 << 20  # the types are inferred from these first bytes
LINE_BYTES = 256 << 20  # no line end within these: it is no text file of rows


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the text is to be read."""

    format: str  # csv or jsonl
    header: bool = True
    delimiter: str = ","


def stream_of(handle: pa.NativeFile, name: str, start: int, stop: int) -> pa.NativeFile:
    """The (unpacked) bytes [start, stop) of a file; a .gz file is always read whole."""
    if is_packed(name):
        handle.seek(0)  # some fsspec systems share one position between all that open a file
        return pa.CompressedInputStream(handle, "gzip")
    return handle.get_stream(start, stop - start)


def is_packed(name: str) -> bool:
    """Whether the file is compressed, hence one range."""
    return name.lower().endswith(".gz")


def blocks(stream: pa.NativeFile, size: int) -> Iterator[bytes]:
    """The stream in blocks of whole lines (the last may lack its line end)."""
    rest = b""
    while data := stream.read(size):
        end = data.rfind(b"\n") + 1
        if end == 0:
            rest += data
            if len(rest) > LINE_BYTES:
                raise pa.ArrowInvalid(f"no line end within {LINE_BYTES >> 20} MiB")
            continue
        yield rest + data[:end]
        rest = data[end:]
    if rest.strip():
        yield rest


def first_block(stream: pa.NativeFile) -> bytes:
    """The first lines, from which the schema is inferred."""
    return next(blocks(stream, SCHEMA_BYTES), b"")


def header_bytes(block: bytes, dialect: Dialect) -> int:
    """Where the first row starts: after the header line, if there is one."""
    if dialect.format != "csv" or not dialect.header:
        return 0
    blank = len(block) - len(block.lstrip(b"\r\n"))
    end = block.find(b"\n", blank)
    return int(len(block) if end < 0 else end + 1)


def first_rows(block: bytes, dialect: Dialect, name: str) -> pa.Table:
    """The rows of a file's first block, with the types that they suggest.

    Raises:
        DataError: rows that do not fit, with the line.
    """
    try:
        return _first_rows(block, dialect)
    except pa.ArrowInvalid as error:
        raise DataError(_explain(str(error), name, 0, (), {})) from error


def _first_rows(block: bytes, dialect: Dialect) -> pa.Table:
    if dialect.format == "jsonl":
        options = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        return pa.json.read_json(io.BytesIO(block), read_options=options)
    table = pa.csv.read_csv(
        io.BytesIO(block),
        read_options=pa.csv.ReadOptions(
            use_threads=False,
            block_size=len(block) + 1,
            autogenerate_column_names=not dialect.header,
        ),
        parse_options=pa.csv.ParseOptions(delimiter=dialect.delimiter),
        convert_options=pa.csv.ConvertOptions(strings_can_be_null=True),
    )
    if not dialect.header:
        table = table.rename_columns([f"c{i}" for i in range(table.num_columns)])
    return table


def cuts(handle: pa.NativeFile, start: int, size: int, step: int) -> list[tuple[int, int]]:
    """Byte ranges of about ``step`` bytes that start and stop at line ends.

    Args:
        handle: the file.
        start: where the first row starts.
        size: the file's bytes.
        step: a range's nominal bytes.
    """
    edges = [start]
    for nominal in range(start + step, size, step):
        if nominal <= edges[-1]:
            continue
        edge = _after_line_end(handle, nominal, size)
        if edge < size:
            edges.append(edge)
    return list(zip(edges, [*edges[1:], size], strict=True))


def _after_line_end(handle: pa.NativeFile, position: int, size: int) -> int:
    """The first position at or after ``position`` that follows a line end."""
    at = position - 1  # a line end just before the position counts
    while at < size:
        data = handle.read_at(min(1 << 16, size - at), at)
        if not data:
            break
        found = data.find(b"\n")
        if found >= 0:
            return at + int(found) + 1
        at += len(data)
    return size


def batches(
    handle: pa.NativeFile,
    name: str,
    *,
    extent: tuple[int, int],
    skip: int,
    dialect: Dialect,
    names: Sequence[str],
    columns: dict[str, pa.DataType],
) -> Iterator[pa.RecordBatch]:
    """The rows of a byte range, one batch a block.

    Args:
        handle: the file.
        name: its name, for messages.
        extent: start and stop in bytes.
        skip: bytes of header to skip in a packed file (there the extent is the whole file).
        dialect: how to read it.
        names: all columns of a CSV file, in order.
        columns: the wanted columns and their types.

    Raises:
        DataError: a row or a value that does not fit, with the line where it can be known.
    """
    offset = 0
    packed = is_packed(name)
    for block in blocks(stream_of(handle, name, *extent), BLOCK_BYTES):
        data = block[skip:] if packed and offset == 0 and skip else block
        if dialect.format == "csv" and _ends_in_quotes(data, dialect.delimiter):
            raise DataError(
                f"{name} holds line breaks inside quoted values, which cannot be read in parts. "
                "Convert it to Parquet, or take the line breaks out."
            )
        try:
            parsed = _parse(data, dialect, names, columns)
        except pa.ArrowInvalid as error:
            start = offset + (len(block) - len(data)) + (0 if packed else extent[0])
            line = _lines(handle, name, start)
            raise DataError(_explain(str(error), name, line, names, columns)) from error
        offset += len(block)
        yield from parsed


def _parse(
    data: bytes, dialect: Dialect, names: Sequence[str], columns: dict[str, pa.DataType]
) -> list[pa.RecordBatch]:
    if not data or data.isspace():
        return []
    if dialect.format == "jsonl":
        table = pa.json.read_json(
            pa.BufferReader(data),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa.json.ParseOptions(
                explicit_schema=pa.schema(list(columns.items())),
                unexpected_field_behavior="ignore",
            ),
        )
    else:
        try:
            table = _parse_csv(data, dialect, names, columns, PARSE_BYTES)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            # A line longer than a parser's block: rare, and then the whole is one block.
            table = _parse_csv(data, dialect, names, columns, len(data) + 1)
    batches: list[pa.RecordBatch] = table.select(list(columns)).combine_chunks().to_batches()
    return batches


def _parse_csv(
    data: bytes,
    dialect: Dialect,
    names: Sequence[str],
    columns: dict[str, pa.DataType],
    block_bytes: int,
) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=block_bytes, column_names=list(names)
        ),
        parse_options=pa.csv.ParseOptions(delimiter=dialect.delimiter),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(columns), column_types=columns, strings_can_be_null=True
        ),
    )


def _ends_in_quotes(block: bytes, delimiter: str) -> bool:
    """Whether the block ends inside a quoted value.

    An even number of quotes says no. An odd one may come from a quote in the midst of a plain
    value, which means nothing: so the quoted values are taken out, and one left open is looked for.
    """
    if block.count(b'"') % 2 == 0:
        return False
    start = b"(^|[\n" + re.escape(delimiter).encode() + b"])"
    rest = re.sub(start + rb'"(?:[^"]|"")*"', rb"\1", block)
    return re.search(start + b'"', rest) is not None


def _explain(
    message: str, name: str, line: int, names: Sequence[str], columns: dict[str, pa.DataType]
) -> str:
    """One sentence for a parser's message, with the line counted from the file's start."""
    row = re.search(r"Row #(\d+)", message)
    row_json = re.search(r"in row (\d+)", message)
    line += int(row[1]) if row else int(row_json[1]) + 1 if row_json else 1
    bad = re.search(r"In CSV column #(\d+).*invalid value '(.*)'", message, re.DOTALL)
    changed = re.search(r"Column\(/(.*)\) changed from (\w+) to (\w+)", message)
    advice = (
        "Correct the value, leave it empty if it is missing, or list the column in "
        "data.categorical or data.exclude."
    )
    if bad:
        # The parser counts the wanted columns or all of them, by version: the name that fits.
        index = int(bad[1])
        column = names[index] if index < len(names) else list(columns)[-1]
        kind = (
            "a number" if columns.get(column) == pa.float64() else f"of type {columns.get(column)}"
        )
        return (
            f"{name}, line {line}: column {column} holds {bad[2]!r}, which is not {kind}. {advice}"
        )
    if changed:
        return (
            f"{name}, line {line}: column {changed[1]} holds a {changed[3]}, "
            f"where a {changed[2]} is expected. {advice}"
        )
    if "Expected" in message and "columns" in message:
        what = message.split(": ", 2)[-1]
        return (
            f"{name}, line {line}: {what!r}: a row of another length. Check the delimiter; "
            "line breaks inside quoted values cannot be read: convert such a file to Parquet."
        )
    return f"{name}, line {line} cannot be read: {message}"


def _lines(handle: pa.NativeFile, name: str, stop: int) -> int:
    """Line ends before ``stop``; read again from the start, as only a failure asks for it."""
    handle.seek(0)
    stream = stream_of(handle, name, 0, stop)
    count, left = 0, stop
    while left > 0 and (data := stream.read(min(left, BLOCK_BYTES))):
        count += int(data.count(b"\n"))
        left -= len(data)
    return count
