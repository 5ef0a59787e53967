"""What is taken off a column before it becomes float32, and which columns need it.

Shards hold float32: 24 bits, one step in 16 million. Times in milliseconds, 1.76e12 of them since
1970, then lie on a grid of two minutes. So such a column is shifted first, in float64 or as whole
numbers, by a value in its midst; the offset is part of the model, and every later source is shifted
alike. All other columns, and their bits, stay as they are.

The rule looks at values of the whole source: evenly placed runs of each piece, of which distinct
values at even ranks are kept. So it depends on the source alone. Distinct values, and medians of
them: neither outliers nor a 0 that stands for "missing" in most rows move it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Float64 = npt.NDArray[np.float64]
Number = int | float

RUNS, RUN_ROWS = 16, 64  # of a piece that are looked at: 1,024 values, on few pages
KEPT = 33  # distinct values of a range
# A column is resolved where rounding to float32 moves a value by no more than this part of the
# column's spread: some 4,000 steps are left in it. A net's own float32 arithmetic is not far off.
PART = 2.0**-13
WHOLE = 2.0**24  # up to here float32 holds every whole number


def is_wide(type_: pa.DataType) -> bool:
    """Whether values of a type may need more digits than float32 has."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_integer(type_):
        return bool(type_.bit_width >= 32)
    return bool(pa.types.is_float64(type_) or pa.types.is_decimal(type_))


def may_need(extremes: tuple[float, float] | None, type_: pa.DataType) -> bool:
    """Whether values between a least and a greatest one can be a case for an offset.

    Outliers may hide the others, so those have to be looked at; but fractions below 2^24 are only
    where the extremes themselves lie far from 0 and near each other.
    """
    if extremes is None:
        return True
    low, high = extremes
    far = max(abs(low), abs(high))
    if not far < WHOLE:
        return True
    return not pa.types.is_integer(type_) and (high - low) * 64 < far  # on the safe side of PART


def looked_at(array: pa.Array) -> pa.Array:
    """The values of a piece that the rule sees, without nulls."""
    if len(array) > RUNS * RUN_ROWS:
        starts = np.linspace(0, len(array) - RUN_ROWS, RUNS).astype(np.int64)
        array = array.take(pa.array((starts[:, None] + np.arange(RUN_ROWS)).reshape(-1)))
    return array.drop_null()


def thinned(known: Sequence[Number], values: npt.NDArray[Any]) -> list[Number]:
    """Distinct finite values at even ranks, ``KEPT`` at most, in order; whole ones as such.

    Args:
        known: of a column, from this function.
        values: more of it.
    """
    both = np.concatenate([np.asarray(known, dtype=values.dtype), values])
    distinct = np.unique(both[np.isfinite(both)])
    ranks = np.unique(np.linspace(0, len(distinct) - 1, KEPT).round().astype(np.int64))
    kept: list[Number] = distinct[ranks].tolist() if len(distinct) else []
    return kept


def offset_of(points: Iterable[Number]) -> Number:
    """What to take off a column of which these values are known; 0 where float32 resolves it."""
    distinct = sorted(set(points))
    if not distinct:
        return 0
    centre, spread = centre_of(distinct)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = [type(value)(np.float32(value)) for value in distinct]
        lost = np.median([abs(less(v, r)) for v, r in zip(distinct, rounded, strict=True)])
    return 0 if lost <= spread * PART else centre


def centre_of(distinct: Sequence[Number]) -> tuple[Number, float]:
    """The median of sorted values, as one of them, and the median distance from it."""
    centre = distinct[(len(distinct) - 1) // 2]
    return centre, float(np.median([abs(less(value, centre)) for value in distinct]))


def less(value: Number, offset: Number) -> float:
    """The difference, of whole numbers exact whatever their size."""
    return float(value - offset)
