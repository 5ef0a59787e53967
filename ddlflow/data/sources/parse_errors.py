"""One sentence for what a parser could not read: the file, the line, the value, and what to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ddlflow.data.sources.csv_rows import CsvRows
from ddlflow.data.sources.dialect import Dialect, is_number, number_pattern

# Signs between thousands: comma, point, spaces (plain, no-break, narrow), apostrophes, underscore.
_THOUSANDS = (None, ",", ".", " ", "\u00a0", "\u202f", "'", "\u2019", "_")
_KINDS = {"timestamp": "a date", "date32": "a date", "bool": "true or false", "time": "a time"}


OTHER_ENCODING = "Set data.encoding to the file's own, such as cp1252, latin-1 or utf-16."


class MismatchError(Exception):
    """A value that a column may not hold."""

    def __init__(self, column: str, row: int, value: Any, was: str = "number") -> None:
        """A value of the row with this number, from 0, where ``was`` is expected."""
        super().__init__(column)
        self.column = column
        self.row = row
        self.value = value
        self.was = was


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Rows of a text file, and where they stand in it.

    Attributes:
        where: the file and what is counted in it: ``t.csv, line``, or ``t.json, row``.
        before: lines before them.
        data: the rows.
        dialect: how they are read.
    """

    where: str
    before: int
    data: bytes
    dialect: Dialect

    def place(self, row: int) -> str:
        """``t.csv, line 7``: where a row begins, by its number from 0."""
        return f"{self.where} {self.before + self._line(row)}"

    def _line(self, row: int) -> int:
        """The line, from 1, that a row begins in; the parsers pass over empty lines."""
        sign = b"\n" if b"\n" in self.data else b"\r"
        rows = CsvRows(self.data, self.dialect.quotes)
        position = 0
        for left in range(row, -1, -1):
            while (end := rows.next_end(position, sign)) >= 0 and self._is_blank(position, end):
                position = end
            if left and end >= 0:
                position = end
        return self.data.count(sign, 0, position) + 1

    def _is_blank(self, start: int, end: int) -> bool:
        line = self.data[start:end]
        return not (line.strip(b"\r\n") if self.dialect.format == "csv" else line.strip())


def explain(
    error: Exception, passage: TextBlock, names: Sequence[str], columns: dict[str, pa.DataType]
) -> str:
    """One sentence for what pyarrow says, or a ``MismatchError``.

    Args:
        error: what it says.
        passage: the rows that it speaks of.
        names: all columns of a CSV file, in order.
        columns: the wanted columns and their types.
    """
    dialect = passage.dialect
    if isinstance(error, MismatchError):
        return (
            f"{passage.place(error.row)}: column {error.column} holds {error.value!r:.80}, "
            f"where a {error.was} is expected. {advice(error.column, error.value, dialect)}"
        )
    said = str(error)
    row = re.search(r"Row #(\d+)", said)
    row_json = re.search(r"in row (\d+)", said)
    place = passage.place(int(row[1]) - 1 if row else int(row_json[1]) if row_json else 0)
    bad = re.search(r"In CSV column #(\d+): .*error to (\w+).*: invalid value '(.*)'", said, re.S)
    zone = re.search(r"In CSV column #(\d+): .*expected (no|a) zone offset in '(.*)'", said, re.S)
    in_text = re.search(r"In CSV column #(\d+): .*invalid UTF8 data", said)
    changed = re.search(r"Column\(/(.*)\) changed from (\w+) to (\w+)", said)
    length = re.search(r"Expected (\d+) columns, got (\d+): (.*)", said, re.S)
    if zone:
        expected, write = (
            ("without a zone", "in UTC, without an offset")
            if zone[2] == "no"
            else ("with a zone", "with its offset, such as +00:00")
        )
        text = f"column {_column(int(zone[1]), names, columns)} holds {zone[3]!r:.80}, where times "
        text += f"{expected} are expected. Write the column {write}."
    elif bad:
        column = _column(int(bad[1]), names, columns)
        type_ = columns.get(column, pa.float64())
        text = f"column {column} holds {bad[3]!r:.80}, "
        text += _wrong_value(column, bad[3], type_, bad[2], dialect)
    elif in_text:
        text = f"column {names[int(in_text[1])]} is not UTF-8. {OTHER_ENCODING}"
    elif changed:
        held = f"column {changed[1]} holds a {changed[3]}, where a {changed[2]} is expected."
        text = f"{held} {advice(changed[1], None, dialect)}"
    elif length:
        text = _other_length(int(length[1]), int(length[2]), length[3])
    else:
        return f"{place} cannot be read: {said}"
    return f"{place}: {text}"


def _column(index: int, names: Sequence[str], columns: dict[str, pa.DataType]) -> str:
    """The parser counts the wanted columns or all of them, by version: the name that fits."""
    return names[index] if index < len(names) else list(columns)[-1]


def _wrong_value(column: str, value: str, type_: pa.DataType, kind: str, dialect: Dialect) -> str:
    if kind == "null":
        return (
            "has no name and is empty in the first rows. Name it in the file's first line, or take "
            "the value out."
        )
    meant = "a number" if is_number(type_) else _KINDS.get(kind, f"of type {kind}")
    if pa.types.is_integer(type_):
        meant = "a whole number of 64 bits"
    return f"which is not {meant}. {advice(column, value, dialect)}"


def written_otherwise(values: Sequence[str], dialect: Dialect) -> str | None:
    """The settings with which all of these texts are numbers, as advice; None if there are none.

    Args:
        values: texts that are no numbers in the dialect, or not all of them.
        dialect: how they were read.
    """
    if dialect.format != "csv":
        return None
    found: list[list[str]] = []
    for thousands in _THOUSANDS:
        for decimal in (".", ","):
            if decimal == thousands or (decimal, thousands) == (dialect.decimal, dialect.thousands):
                continue
            pattern = re.compile(number_pattern(decimal, thousands))
            if all(map(pattern.match, values)):
                settings = []
                if decimal != dialect.decimal:
                    settings.append(f"data.decimal: {_shown(decimal)}")
                if thousands != dialect.thousands:
                    settings.append(f"data.thousands: {_shown(thousands)}")
                found.append(settings)
    least = min(map(len, found), default=0)
    said = [" and ".join(settings) for settings in found if len(settings) == least]
    return " or ".join(said[:2]) or None


def _shown(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


def advice(column: str, value: Any, dialect: Dialect, *, is_alone: bool = False) -> str:
    """What makes a value readable; each of these can be followed as it stands.

    Args:
        column: that holds it.
        value: a text, or None where it is not known.
        dialect: how it was read.
        is_alone: other values of the column are numbers in this dialect.
    """
    correct, missing = "Correct the value", ""
    if isinstance(value, str) and dialect.format == "csv":
        settings = None if is_alone else written_otherwise([value], dialect)
        if settings:
            correct = f"Set {settings} if the file's numbers are written so; or correct the value"
        missing = f' (or set data.missing_values: [pandas, "{value:.40}"])'
    return (
        f"{correct}, or leave it empty if it is missing{missing}; or list {column} in data.text to "
        "read it as text, or in data.exclude."
    )


def _other_length(expected: int, got: int, row: str) -> str:
    what = f"{got} values, where {expected} are expected: {row!r:.80}."
    if expected == 1:
        return (
            f"{what} Is the first line the header? Take out what stands above it, or set "
            "data.delimiter."
        )
    return (
        f"{what} Put a value that holds the delimiter in quotes, or set data.delimiter (and "
        'data.decimal: "," where a comma stands before decimals).'
    )
