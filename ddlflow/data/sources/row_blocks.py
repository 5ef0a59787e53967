"""The bytes of a text file as blocks of whole rows in UTF-8, and where a large file may be cut.

A file that is packed, a JSON array, or in an encoding whose bytes mean nothing by themselves is one
range, read from its start. Any other is cut at rows' ends.
"""

import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa

from ddlflow.data.sources.csv_rows import BOM, CsvRows
from ddlflow.data.sources.dialect import Dialect
from ddlflow.data.sources.encoding import recoded
from ddlflow.data.sources.jsonarray import elements
from ddlflow.errors import DataError

LINE_BYTES = 256 << 20  # no row's end within these: it is no text file of rows
QUOTED_BYTES = 1 << 20  # without a quote for so long before a cut, it is in no quoted value


def is_packed(name: str) -> bool:
    """Whether the file is compressed."""
    return name.lower().endswith(".gz")


def is_whole(handle: pa.NativeFile, name: str, size: int, dialect: Dialect) -> bool:
    """Whether a file is one range: packed, in bytes that mean nothing alone, or a JSON array."""
    whole = is_packed(name) or not dialect.is_cut_by_bytes
    return whole or is_array(handle, name, size, dialect)


def is_array(handle: pa.NativeFile, name: str, size: int, dialect: Dialect) -> bool:
    """Whether a file of JSON is one array."""
    if dialect.format != "jsonl":
        return False
    first = next(_text(handle, name, (0, size), dialect, 1 << 12), b"")
    return _opens_array(first, dialect)


def unit_of(handle: pa.NativeFile, name: str, size: int, dialect: Dialect) -> str:
    """What is counted to name a place in a file: lines, or the rows of an array."""
    return "row" if is_array(handle, name, size, dialect) else "line"


def blocks(
    handle: pa.NativeFile, name: str, extent: tuple[int, int], dialect: Dialect, size: int
) -> Iterator[bytes]:
    """The rows of a byte range in blocks of whole rows (the last may lack its line end).

    Args:
        handle: the file.
        name: its name, for messages.
        extent: first byte and the one after the last; of a packed file always the whole.
        dialect: how it is read.
        size: bytes that are read at once.

    Raises:
        DataError: bytes that are no characters, a quote that is never closed, a row without end.
    """
    rest, done = b"", 0
    for data in _chunks(handle, name, extent, dialect, size):
        rest += data
        end = CsvRows(rest, dialect.quotes).last_end()
        if end:
            yield rest[:end]
            rest, done = rest[end:], done + end
        elif len(rest) > LINE_BYTES:
            break
    opened = CsvRows(rest, dialect.quotes).open_at
    if opened is not None:
        line = line_after(handle, name, extent, dialect, done + opened)
        raise DataError(
            f"{name}, line {line}: the quote that opens a value there is not closed. Close or "
            f"remove it; a file with values of more than {QUOTED_BYTES >> 20} MiB has to be "
            "converted to Parquet."
        )
    if len(rest) > LINE_BYTES:
        raise DataError(
            f"{name} holds a row of more than {LINE_BYTES >> 20} MiB: it is no text file of rows. "
            "Set data.format, or write it again."
        )
    if rest.strip():
        yield rest


def first_block(handle: pa.NativeFile, name: str, size: int, dialect: Dialect, most: int) -> bytes:
    """The first rows, about ``most`` bytes of them, of a file of ``size`` bytes."""
    return next(blocks(handle, name, (0, size), dialect, most), b"")


def header_bytes(block: bytes, dialect: Dialect) -> int:
    """Where the first row starts: after the header, if there is one."""
    if dialect.format != "csv" or not dialect.header:
        return 0
    blank = len(block) - len(block.removeprefix(BOM).lstrip(b"\r\n"))
    return CsvRows(block, dialect.quotes).first_end(blank)


def cuts(
    handle: pa.NativeFile, extent: tuple[int, int], dialect: Dialect, step: int
) -> list[tuple[int, int]]:
    """Byte ranges of about ``step`` bytes that start and stop at rows' ends.

    A file with quotes before a cut is read once from its start, as nothing less tells whether a
    line end there is inside a quoted value. (Counting its quotes costs a small part of parsing.)

    Args:
        handle: the file.
        extent: where the first row starts, and the file's bytes.
        dialect: how it is read.
        step: a range's nominal bytes.
    """
    start, size = extent
    places = range(start + step, size, step)
    edges = [start]
    for nominal in places:
        edge = _after_line_end(handle, nominal, size)
        before = max(start, nominal - QUOTED_BYTES)
        if dialect.quotes and b'"' in handle.read_at(edge - before, before):
            edges = [start, *_row_ends(handle, extent, dialect, places)]
            break
        edges.append(edge)
    edges = sorted({edge for edge in edges if edge < size})
    return list(itertools.pairwise([*edges, size]))


def line_after(
    handle: pa.NativeFile, name: str, extent: tuple[int, int], dialect: Dialect, position: int
) -> int:
    """The line that a position in a range's text is in, counted from the file's start.

    The file is read again up to there, as only a failure asks for it.
    """
    newlines = returns = 0
    parts: list[tuple[tuple[int, int], int | None]] = [(extent, position)]
    if extent[0]:
        parts.insert(0, ((0, extent[0]), None))
    for part, stop in parts:
        left = stop
        for data in _chunks(handle, name, part, dialect, 1 << 20):
            text = data[:left]
            newlines += text.count(b"\n")
            returns += text.count(b"\r")
            left = None if left is None else left - len(text)
            if left == 0:
                break
    return (newlines or returns) + 1


def _chunks(
    handle: pa.NativeFile, name: str, extent: tuple[int, int], dialect: Dialect, size: int
) -> Iterator[bytes]:
    """A range's text in UTF-8, cut anywhere; a JSON array's elements as lines."""
    found = _text(handle, name, extent, dialect, size)
    if extent[0] or dialect.format != "jsonl":
        return found
    first = next(found, b"")
    found = itertools.chain([first], found)
    return elements(found, name) if _opens_array(first, dialect) else found


def _text(
    handle: pa.NativeFile, name: str, extent: tuple[int, int], dialect: Dialect, size: int
) -> Iterator[bytes]:
    found = _raw(handle, name, extent, size)
    if dialect.is_utf8:
        return found

    def lines_before() -> int:
        return sum(data.count(b"\n") for data in _raw(handle, name, (0, extent[0]), 1 << 20))

    return recoded(found, name, dialect.encoding, lines_before if extent[0] else lambda: 0)


def _raw(handle: pa.NativeFile, name: str, extent: tuple[int, int], size: int) -> Iterator[bytes]:
    if is_packed(name):
        handle.seek(0)  # some fsspec systems share one position between all that open a file
        stream = pa.CompressedInputStream(pa.PythonFile(_Borrowed(handle), mode="r"), "gzip")
    else:
        stream = handle.get_stream(extent[0], extent[1] - extent[0])
    while data := stream.read(size):
        yield data


class _Borrowed:
    """A file that stays open when what reads it is closed."""

    closed = False

    def __init__(self, handle: pa.NativeFile) -> None:
        self.read = handle.read

    def close(self) -> None:
        """Leaves the file open."""


def _opens_array(block: bytes, dialect: Dialect) -> bool:
    return dialect.format == "jsonl" and block.removeprefix(BOM).lstrip().startswith(b"[")


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


def _row_ends(
    handle: pa.NativeFile, extent: tuple[int, int], dialect: Dialect, places: Iterable[int]
) -> Iterator[int]:
    """The first row's end at or after each place."""
    position = extent[0]
    left = list(places)
    # The name tells only what is packed, and the text is as long as the bytes: both hold here.
    plain = Dialect("csv", delimiter=dialect.delimiter)
    for block in blocks(handle, "", extent, plain, 8 << 20):
        rows = CsvRows(block, dialect.quotes)
        while left and left[0] <= position + len(block):
            end = rows.next_end(max(0, left[0] - 1 - position))
            if end < 0:
                break
            yield position + end
            left.pop(0)
        position += len(block)
