"""A stray text among numbers: it must not turn a column of a text format into a category.

Parquet and Arrow state a column's type. In CSV and JSON lines it is inferred from the first rows,
and one "n/a" among them makes text of a million numbers.
"""

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.schema import is_feature, kind_of
from ddlflow.data.text import Dialect
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

MEANT_AS_NUMBERS = 0.9  # a column with this share of numbers is one of numbers, with mistakes
_NUMBER = r"^\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?|nan)\s*$"


def refuse_strays(rows: pa.Table, block: bytes, dialect: Dialect, path: str, spec: Data) -> None:
    """Checks the feature columns that were inferred to be text, unless they are to be categories.

    Args:
        rows: a file's first rows.
        block: the bytes that they were parsed from, to tell the line.
        dialect: how they were parsed.
        path: the file's, for the message.
        spec: which columns are features, and which of them categories.

    Raises:
        DataError: most values of a column are numbers, but not all: names the first that is none.
    """
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        wanted = is_feature(name, spec) and name not in spec.categorical
        if not wanted or kind_of(column.type) != "text":
            continue
        is_number = pc.match_substring_regex(column, _NUMBER, ignore_case=True)
        known = len(column) - column.null_count
        numbers = pc.sum(is_number).as_py() or 0
        if numbers == known or numbers < MEANT_AS_NUMBERS * known:
            continue
        row = pc.index(is_number, False).as_py()
        raise DataError(
            f"{path}, line {_line(block, dialect, row)}: column {name} holds "
            f"{column[row].as_py()!r:.80}, where {numbers} of the first {known} values are "
            "numbers. Correct that value, or leave it empty if it is missing; or list the column "
            "in data.categorical or data.exclude."
        )


def _line(block: bytes, dialect: Dialect, row: int) -> int:
    """The line of a row, both from the file's start; the parsers pass over empty lines."""
    left = row + (dialect.format == "csv" and dialect.header)
    number = 0
    for number, line in enumerate(block.split(b"\n"), 1):  # noqa: B007 - it is the result
        if line.strip(b"\r" if dialect.format == "csv" else None):
            if left == 0:
                break
            left -= 1
    return number
