"""Dates and times as numbers: the columns that one becomes, each with its expression.

A time with a zone is taken in UTC. Weekdays are counted from 1, Monday, to 7.
"""

import pyarrow as pa

from ddlflow.data.sources.schema import is_date

_DAY = {"year": "year", "month": "month", "day": "day", "weekday": "isodow"}
_TIME = {"hour": "hour", "minute": "minute"}
_SECONDS = {"seconds": "epoch"}  # since 1970; of a time of day since midnight


def parts(name: str, type_: pa.DataType, how: str) -> dict[str, str]:
    """The columns that a column is taken apart into, with their expressions; of no date, none.

    Args:
        name: the column's.
        type_: the column's.
        how: ``data.dates``.
    """
    if how == "refuse" or not is_date(type_):
        return {}
    if how == "number":
        functions = _SECONDS
    elif pa.types.is_date(type_):
        functions = _DAY
    else:
        functions = _TIME if pa.types.is_time(type_) else _DAY | _TIME
    quoted = '"' + name.replace('"', '""') + '"'
    return {f"{name}.{part}": f"{function}({quoted})" for part, function in functions.items()}


def without_zones(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with dates and times in the types that MLflow's signatures know.

    Timestamps in UTC without a zone, days as timestamps, times of day as text: read again, each
    gives the value that it was.
    """
    arrays = []
    for array in batch.columns:
        if pa.types.is_time(array.type):
            array = array.cast(pa.string())  # noqa: PLW2901 - the same in another type
        elif is_date(array.type):
            array = array.cast(pa.timestamp("us"))  # noqa: PLW2901 - likewise
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def part_of(name: str) -> str:
    """The column that a name may be a part of: ``time`` of ``time.hour``, else the name itself."""
    column, _, part = name.rpartition(".")
    return column if column and part in {*_DAY, *_TIME, *_SECONDS} else name
