"""How a text format is to be read: what the pipeline says of it, in one small value."""

import codecs
import itertools
import re
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa

from ddlflow.spec.pipeline import Data

# What pandas.read_csv takes for a missing value.
PANDAS_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The format, and how text is to be read.

    Attributes:
        format: parquet, arrow, csv or jsonl.
        header: whether a CSV file's first line names the columns.
        delimiter: between the values of a CSV file.
        encoding: of the characters, as Python calls it.
        decimal: the sign before the decimals.
        thousands: the sign between groups of digits, or None.
        missing: the texts that stand for a missing value in CSV.
        text: columns that are read as text.
    """

    format: str
    header: bool = True
    delimiter: str = ","
    encoding: str = "utf-8"
    decimal: str = "."
    thousands: str | None = None
    missing: tuple[str, ...] = PANDAS_MISSING
    text: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether rows are parsed from text: such a file states no types and no number of rows."""
        return self.format in ("csv", "jsonl")

    @property
    def quotes(self) -> bytes | None:
        """The delimiter where quoted values may hold line ends; None in JSON lines."""
        return self.delimiter.encode() if self.format == "csv" else None

    @property
    def is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")

    @property
    def is_cut_by_bytes(self) -> bool:
        """Whether a line end, a quote and a delimiter are single bytes that mean nothing else."""
        return self.is_utf8 or _is_bytewise(self.encoding)

    def of_bytes(self) -> "Dialect":
        """To read a file's bytes as they are, where that tells rows apart (``is_cut_by_bytes``)."""
        return replace(self, encoding="utf-8")


def dialect_of(kind: str, spec: Data) -> Dialect:
    """What a pipeline says of reading a format."""
    words = [spec.missing_values] if isinstance(spec.missing_values, str) else spec.missing_values
    missing = [PANDAS_MISSING if word == "pandas" else (word,) for word in words]
    return Dialect(
        format=kind,
        header=spec.header,
        delimiter=spec.delimiter,
        encoding=spec.encoding,
        decimal=spec.decimal,
        thousands=spec.thousands,
        missing=tuple(itertools.chain(*missing)),
        text=tuple(spec.text),
    )


def is_number(type_: pa.DataType) -> bool:
    """Whether a text column is parsed as numbers."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


@cache
def _is_bytewise(encoding: str) -> bool:
    """Whether each byte is a character (or none) by itself, and ASCII means what it says."""
    for byte in range(256):
        try:
            found = codecs.getincrementaldecoder(encoding)().decode(bytes([byte]))
        except UnicodeDecodeError:
            found = "?"
        if len(found) != 1 or (byte < 128 and found != chr(byte)):
            return False
    return True


def number_pattern(decimal: str, thousands: str | None) -> str:
    """A regular expression (RE2 and Python) of a number as it is written in a dialect."""
    sign = re.escape(decimal)
    whole = r"\d+"
    if thousands is not None:  # groups of three, and of two before them as in 12,34,567
        group = re.escape(thousands)
        whole = rf"(\d{{1,3}}({group}\d{{2,3}})*{group}\d{{3}}|\d+)"
    value = rf"({whole}({sign}\d*)?|{sign}\d+)([eE][+-]?\d+)?"
    return rf"^\s*[+-]?({value}|[iI][nN][fF](inity|INITY)?|[nN][aA][nN])\s*$"
