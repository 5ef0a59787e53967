"""CSV and JSON lines, parsed block by block in bounded memory.

The types come from a file's first block (of JSON, whose rows may bring new keys at any time, from
the whole file). What a later block holds instead is told with its line, never read otherwise.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ddlflow.data.sources import jsonl
from ddlflow.data.sources.csv_rows import CsvRows
from ddlflow.data.sources.dialect import Dialect, is_number, number_pattern
from ddlflow.data.sources.parse_errors import MismatchError, TextBlock, explain
from ddlflow.data.sources.row_blocks import blocks, header_bytes, line_after, unit_of
from ddlflow.errors import DataError

RANGE_BYTES = 64 << 20
BLOCK_BYTES = 8 << 20  # parsed at once: large enough that the calls cost nothing, small in memory
# The parser's own block. 29 columns of doubles parsed 1.5 to 2.2 times as fast in blocks of 1 MiB
# as in ones of 8 or 16 MiB, which leave the cache (measured).
PARSE_BYTES = 1 << 20
SCHEMA_BYTES = 4 << 20  # the types are inferred from these first bytes

Types = dict[str, pa.DataType]


def first_rows(block: bytes, dialect: Dialect, name: str, categories: Collection[str]) -> pa.Table:
    """The rows of a CSV file's first block, with the types that they suggest.

    Args:
        block: whole rows, from the file's start.
        dialect: how they are read.
        name: the file's, for messages.
        categories: columns whose numbers are names: beyond 64 bits they are text.

    Raises:
        DataError: rows that do not fit, with the line.
    """
    begin = header_bytes(block, dialect)
    data = block[begin:]
    names: list[str] = []
    try:
        names = _names(block, begin, dialect)
        if not data.strip():
            return pa.table([pa.nulls(0) for _ in names], names=names)
        types = dict.fromkeys(dialect.text, pa.string())
        table = _read_csv(data, dialect, names, types, block_bytes=len(data) + 1)
        for column in _not_whole(table, categories):
            texts = _read_csv(data, dialect, names, {column: pa.string()}, only=[column])[column]
            if pc.all(pc.match_substring_regex(texts, r"^[+-]?\d+$")).as_py():
                table = table.set_column(names.index(column), column, texts)
    except pa.ArrowInvalid as error:
        line = block.count(b"\n", 0, begin) or block.count(b"\r", 0, begin)
        passage = TextBlock(f"{name}, line", line, data, dialect)
        raise DataError(explain(error, passage, names, {})) from error
    return _with_thousands(table, dialect)


def _names(block: bytes, begin: int, dialect: Dialect) -> list[str]:
    """A CSV file's columns: as the header has them, or c0, c1, ...; a column without a name gets
    the one that pandas gives it."""
    if dialect.header:
        found = _read_csv(block[:begin], dialect, None, {}).column_names
        return [name or f"Unnamed: {i}" for i, name in enumerate(found)]
    first = block[
        : CsvRows(block, dialect.quotes).first_end(len(block) - len(block.lstrip(b"\r\n")))
    ]
    row = _read_csv(b"\n" + first, dialect, None, {}, is_headless=True)
    return [f"c{i}" for i in range(row.num_columns)]


def _not_whole(table: pa.Table, categories: Collection[str]) -> list[str]:
    """Categories that were taken for decimals: perhaps whole numbers beyond 64 bits."""
    return [n for n in table.column_names if n in categories and table[n].type == pa.float64()]


def _with_thousands(table: pa.Table, dialect: Dialect) -> pa.Table:
    """Texts that are numbers with a sign between the thousands, as numbers."""
    if dialect.thousands is None:
        return table
    pattern = number_pattern(dialect.decimal, dialect.thousands)
    for index, name in enumerate(table.column_names):
        column = table.column(index)
        if not pa.types.is_string(column.type) or name in dialect.text:
            continue
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            table = table.set_column(index, name, _numbers(column, name, dialect))
    return table


def _numbers(column: pa.ChunkedArray, name: str, dialect: Dialect) -> pa.ChunkedArray:
    """Texts with a sign between the thousands as float64.

    Raises:
        MismatchError: a text that is no such number.
    """
    pattern = number_pattern(dialect.decimal, dialect.thousands)
    row = pc.index(pc.match_substring_regex(column, pattern), False).as_py()
    if row >= 0:
        raise MismatchError(name, row, column[row].as_py())
    plain = pc.replace_substring(pc.utf8_trim_whitespace(column), dialect.thousands, "")
    return pc.replace_substring(plain, dialect.decimal, ".").cast(pa.float64())


def as_written(block: bytes, dialect: Dialect, rows: pa.Table) -> pa.Table:
    """The text columns of a first block, with the words that stand for missing values."""
    is_text = [pa.types.is_string(type_) or pa.types.is_null(type_) for type_ in rows.schema.types]
    names = rows.column_names
    texts = [name for name, wanted in zip(names, is_text, strict=True) if wanted]
    if not texts or not rows.num_rows:
        return rows.select([])
    types = dict.fromkeys(texts, pa.string())
    data = block[header_bytes(block, dialect) :]
    return _read_csv(data, replace(dialect, missing=()), names, types, only=texts)


def batches(
    handle: pa.NativeFile,
    name: str,
    *,
    extent: tuple[int, int],
    dialect: Dialect,
    names: Sequence[str],
    columns: Types,
) -> Iterator[pa.RecordBatch]:
    """The rows of a byte range, one batch a block.

    Args:
        handle: the file.
        name: its name, for messages.
        extent: start and stop in bytes; the header of a file is skipped.
        dialect: how to read it.
        names: all columns of a CSV file, in order.
        columns: the wanted columns and their types.

    Raises:
        DataError: a row or a value that does not fit, with its line.
    """
    position = 0
    for block in blocks(handle, name, extent, dialect, BLOCK_BYTES):
        begin = header_bytes(block, dialect) if position == 0 and extent[0] == 0 else 0
        data = block[begin:]
        try:
            parsed = parse(data, dialect, names, columns)
        except (pa.ArrowInvalid, MismatchError) as error:
            line = line_after(handle, name, extent, dialect, position + begin) - 1
            where = f"{name}, {unit_of(handle, name, extent[1], dialect)}"
            passage = TextBlock(where, line, data, dialect)
            raise DataError(explain(error, passage, names, columns)) from error
        position += len(block)
        yield from parsed


def parse(
    data: bytes, dialect: Dialect, names: Sequence[str], columns: Types
) -> list[pa.RecordBatch]:
    """The wanted columns of whole rows.

    Raises:
        pyarrow.ArrowInvalid, MismatchError: what does not fit.
    """
    if not data or data.isspace():
        return []
    if dialect.format == "jsonl":
        table = jsonl.parse(data, dialect, columns)
    else:
        table = _parse_csv(data, dialect, names, columns)
    batches: list[pa.RecordBatch] = table.select(list(columns)).combine_chunks().to_batches()
    return batches


def _parse_csv(data: bytes, dialect: Dialect, names: Sequence[str], columns: Types) -> pa.Table:
    grouped = [n for n, type_ in columns.items() if dialect.thousands and is_number(type_)]
    types = columns | dict.fromkeys(grouped, pa.string())
    try:
        table = _read_wanted(data, dialect, names, types)
    except pa.ArrowInvalid:
        # With gaps pandas writes whole numbers as 2020.0; what is no whole number is told as it is.
        whole = {name: pa.float64() for name, type_ in types.items() if pa.types.is_integer(type_)}
        try:
            read = _read_wanted(data, dialect, names, types | whole) if whole else None
            table = read and read.cast(pa.schema(list(types.items())))
        except pa.ArrowInvalid:
            table = None
        if table is None:
            raise
    for name in grouped:
        values = _numbers(table[name], name, dialect).cast(columns[name])
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def _read_wanted(data: bytes, dialect: Dialect, names: Sequence[str], types: Types) -> pa.Table:
    """The columns of these types, in this order."""
    only = list(types)
    try:
        return _read_csv(data, dialect, names, types, only=only, block_bytes=PARSE_BYTES)
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        # A row longer than a parser's block: rare, and then the whole is one block.
        return _read_csv(data, dialect, names, types, only=only)


def _read_csv(
    data: bytes,
    dialect: Dialect,
    names: Sequence[str] | None,
    types: Types,
    *,
    only: Sequence[str] | None = None,
    block_bytes: int | None = None,
    is_headless: bool = False,
) -> pa.Table:
    """Rows of CSV; without names, the first one has them (or none has, ``is_headless``)."""
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            use_threads=False,
            block_size=block_bytes or len(data) + 1,
            column_names=list(names) if names is not None else None,
            autogenerate_column_names=is_headless,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.delimiter, newlines_in_values=b'"' in data
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(only) if only is not None else None,
            column_types=types,
            strings_can_be_null=True,
            null_values=list(dialect.missing),
            decimal_point=dialect.decimal,
        ),
    )
