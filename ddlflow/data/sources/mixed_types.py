"""Text where numbers are meant: it must not turn a column of a text format into a category.

Parquet and Arrow state a column's type. In CSV and JSON lines it is inferred from the first rows,
and one "n/a" among them makes text of a million numbers, as a decimal comma or a sign between the
thousands does.
"""

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.dialect import number_pattern
from ddlflow.data.sources.parse_errors import TextBlock, advice, written_otherwise
from ddlflow.data.sources.schema import is_feature, kind_of
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

MEANT_AS_NUMBERS = 0.9  # a column with this share of numbers is one of numbers, with mistakes
MOST_CLASSES = 100  # a label of more different numbers is a number, and a text in it a mistake
_LOOKED_AT = 10_000  # texts held against other ways to write numbers


def refuse_mixed_types(rows: pa.Table, passage: TextBlock, spec: Data) -> None:
    """Checks the features (and the label) that were inferred to be text, unless meant as text.

    Args:
        rows: a file's first rows.
        passage: what they were parsed from.
        spec: which columns are features, and which of them categories.

    Raises:
        DataError: most values of a column are numbers, but not all: names the first that is none.
            Or all are numbers that are written otherwise than the pipeline says.
    """
    dialect = passage.dialect
    pattern = number_pattern(dialect.decimal, dialect.thousands)
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        is_text = name in spec.categorical or name in spec.text
        used = name == spec.label or is_feature(name, spec)
        if is_text or not used or kind_of(column.type) != "text":
            continue
        is_number = pc.match_substring_regex(column, pattern)
        known = len(column) - column.null_count
        numbers = pc.sum(is_number).as_py() or 0
        if numbers == known:
            continue
        row = pc.index(is_number, False).as_py()
        place = f"{passage.place(row)}: column {name} holds"
        value = column[row].as_py()
        is_class = name == spec.label and _num_different(column, is_number) <= MOST_CLASSES
        if numbers >= MEANT_AS_NUMBERS * known and not is_class:
            raise DataError(
                f"{place} {value!r:.80}, where {numbers} of the first {known} values are numbers. "
                f"{advice(name, value, dialect, is_alone=True)}"
            )
        texts = column.drop_null().slice(0, _LOOKED_AT).to_pylist()
        settings = written_otherwise(texts, dialect)
        if settings:
            raise DataError(
                f"{place} {value!r:.80}, and every value is a number written in this way. "
                f"Set {settings}; or list the column in data.text if it is none."
            )


def _num_different(column: pa.ChunkedArray, is_wanted: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(column.filter(is_wanted)).as_py())
