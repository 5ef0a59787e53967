"""JSON lines: a block's columns, and which columns a whole file has.

A key may first stand in any row, and a value may be of another type in any row: so the types are
those of all rows, and values that are now a number and now a text are told with their line.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.json

from ddlflow.data.sources.csv_rows import BOM
from ddlflow.data.sources.dialect import Dialect, is_number
from ddlflow.data.sources.encoding import refuse_other_encodings
from ddlflow.data.sources.parse_errors import MismatchError, TextBlock, explain
from ddlflow.errors import DataError
from ddlflow.machine import cores

Types = dict[str, pa.DataType]
_NAMES = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int64(): "number",
    pa.float64(): "number",
}


def parse(data: bytes, dialect: Dialect, columns: Types) -> pa.Table:
    """The wanted columns of whole rows; numbers of a column of ``data.text`` as they are written.

    Raises:
        pyarrow.ArrowInvalid: what does not fit.
    """
    exact = [name for name in columns if name in dialect.text]
    typed = {name: type_ for name, type_ in columns.items() if name not in exact}
    table = None
    if typed or not exact:
        table = _read(
            data,
            pa.json.ParseOptions(
                explicit_schema=pa.schema(list(typed.items())), unexpected_field_behavior="ignore"
            ),
        )
    if exact:
        rows = list(_rows(data, as_written=True))
        for name in exact:
            texts = pa.array([_text(row.get(name)) for row in rows], pa.string())
            table = pa.table({name: texts}) if table is None else table.append_column(name, [texts])
    return table


def types_of_file(
    blocks: Iterator[bytes],
    dialect: Dialect,
    where: str,
    is_wanted: Callable[[str], bool],
) -> Types:
    """The columns of all rows of a file.

    Args:
        blocks: of the whole file.
        dialect: how they are read.
        where: the file and what is counted in it: ``t.jsonl, line``.
        is_wanted: whether a column has to be of one type; any other becomes text.

    Raises:
        DataError: rows that are no JSON, or a wanted column of several types, with the line.
    """
    types: Types = {}
    line = 0
    for block, inferred in _inferred(blocks):
        refuse_other_encodings(block, where, line, dialect)
        passage = TextBlock(where, line, block, dialect)
        try:
            found = inferred.result()
            merged = {
                name: joined(types.get(name, pa.null()), type_)
                for name, type_ in zip(found.names, found.types, strict=True)
            }
        except pa.ArrowInvalid as error:
            if "changed from" not in str(error):
                raise DataError(explain(error, passage, (), {})) from error
            merged = {"": None}
        if None in merged.values():
            merged = _row_by_row(passage, types, is_wanted)
        types |= {name: type_ for name, type_ in merged.items() if type_ is not None}
        line += block.count(b"\n") or block.count(b"\r")
    return {n: pa.string() if n in dialect.text else type_ for n, type_ in types.items()}


def _inferred(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, Future[pa.Schema]]]:
    """Each block, in order, with the schema that Arrow infers of it: on all cores, a few blocks
    ahead."""
    most = cores()
    with ThreadPoolExecutor(most) as pool:
        waiting: deque[tuple[bytes, Future[pa.Schema]]] = deque()
        for block in blocks:
            waiting.append((block, pool.submit(_schema, block)))
            if len(waiting) > most:
                yield waiting.popleft()
        yield from waiting


def _schema(block: bytes) -> pa.Schema:
    return _read(block, None).schema


def types_of_files(schemas: Sequence[pa.Schema]) -> Types:
    """The columns of several files: each key that any has, of a type that holds all its values.

    Where there is no such type the first stays, and the value that does not fit is told as it is
    read.
    """
    found: Types = {}
    for schema in schemas:
        for name, type_ in zip(schema.names, schema.types, strict=True):
            before = found.get(name, pa.null())
            found[name] = joined(before, type_) or before
    return found


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_number(one) and is_number(other):
        return pa.float64()
    as_text = [pa.types.is_timestamp(type_) or pa.types.is_string(type_) for type_ in (one, other)]
    if all(as_text):  # a date is a text that looks like one
        return pa.string()
    nested = [pa.types.is_nested(type_) for type_ in (one, other)]
    return one if all(nested) else None


def _read(data: bytes, options: pa.json.ParseOptions | None) -> pa.Table:
    data = data.removeprefix(BOM)
    return pa.json.read_json(
        pa.BufferReader(data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=options,
    )


def _rows(data: bytes, *, as_written: bool = False) -> Iterator[dict[str, Any]]:
    """Each row; numbers as their text if so wanted."""
    numbers: dict[str, Any] = (
        {"parse_int": str, "parse_float": str, "parse_constant": str} if as_written else {}
    )
    for line in data.removeprefix(BOM).splitlines():
        if line.strip():
            yield json.loads(line, **numbers)


def _row_by_row(
    passage: TextBlock, types: Types, is_wanted: Callable[[str], bool]
) -> dict[str, pa.DataType | None]:
    """As Arrow infers types, where it gave up at a column that holds several."""
    found: dict[str, pa.DataType | None] = dict(types)
    for number, row in enumerate(_rows(passage.data)):
        for name, value in row.items():
            before = found.get(name, pa.null())
            type_ = joined(before, _type(value))
            if type_ is None and is_wanted(name) and name not in passage.dialect.text:
                mismatch = MismatchError(
                    name, number, value, was=_NAMES.get(before, "list or object")
                )
                raise DataError(explain(mismatch, passage, (), types))
            found[name] = type_ or pa.string()
    return found


def _type(value: Any) -> pa.DataType:
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    nested = pa.list_(pa.null())
    return pa.null() if value is None else kinds.get(type(value), nested)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
