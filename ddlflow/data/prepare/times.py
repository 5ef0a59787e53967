"""Times in order: as integers, and cut into blocks of equal numbers of rows out of core.

Each worker leaves the times of its training rows as sorted runs in a file. A quantile is then
found by bisection over the values: how many rows of all runs lie below a value is a binary search
in each of them. So nothing is merged, and the memory needed does not grow with the rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.columns import missing_mask
from ddlflow.errors import DataError
from ddlflow.store.stored import StoredFile

Int64 = npt.NDArray[np.int64]

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LEAST = -(2**63)


@dataclass(frozen=True, slots=True)
class Times:
    """The times of one range's training rows.

    Attributes:
        file: of int64, from ``ordinals``: runs one after the other, each rising.
        runs: the rows of each run.
    """

    file: StoredFile
    runs: tuple[int, ...]


def unusable(array: pa.Array) -> npt.NDArray[np.bool_]:
    """True [n] where a time is null, NaN or infinite."""
    mask, array = missing_mask(array), _plain(array)
    if pa.types.is_floating(array.type):
        mask = mask | np.isinf(array.to_numpy(zero_copy_only=False))
    return mask


def ordinals(array: pa.Array, name: str, type_: pa.DataType) -> Int64:
    """Times [n] as integers that stand in the same order; equal times give equal integers.

    Whole numbers stay; dates and timestamps are counted in their own unit; decimals give the
    bits of their float64, turned round where they are negative.

    Args:
        array: no value is null, NaN or infinite.
        name: the column's, for messages.
        type_: its type in the source as a whole; a file's own may be another number's.

    Raises:
        DataError: a number beyond int64, or a decimal where the source has whole numbers.
    """
    array = _plain(array)
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if _is_decimal(type_):
        values = array.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0  # -0.0 becomes 0.0
        bits: Int64 = values.view(np.int64)
        return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)
    try:
        typed = array.cast(type_)
        whole = typed.cast(pa.int32()) if pa.types.is_date32(type_) else typed
        found: Int64 = whole.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"cv.by names column {name} of type {type_}, which holds what cannot be read so: "
            f"{error}. Write the column with one type in the source."
        ) from error
    return found


def before(first: int, gap: float, type_: pa.DataType) -> int:
    """The least ordinal that lies within ``gap`` before the ordinal ``first``.

    Args:
        first: the first time that a fold is validated on.
        gap: >= 0; in days for dates, in seconds for timestamps, else in the column's own unit.
        type_: the column's.
    """
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if _is_decimal(type_):
        bits = np.array([first if first >= 0 else first ^ (2**63 - 1)], dtype=np.int64)
        return int(ordinals(pa.array(bits.view(np.float64) - gap), "", pa.float64())[0])
    unit = 1
    if pa.types.is_timestamp(type_):
        unit = _PER_SECOND[type_.unit]
    elif pa.types.is_date64(type_):
        unit = 86_400_000
    return max(_LEAST, first - math.floor(Fraction(repr(gap)) * unit))


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_decimal(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def firsts(times: Sequence[Times], low: int, high: int, blocks: int) -> list[int]:
    """The first times of all blocks but the first: equal times together, sizes near equal.

    Each cut is put where equal times begin or end, whichever is nearer to the exact place (and not
    before all rows or after them).

    Args:
        times: of all ranges.
        low: the least time.
        high: the largest.
        blocks: how many.

    Returns:
        [blocks - 1]; not rising strictly where too many rows share a time.
    """
    rows = sum(sum(part.runs) for part in times)
    exact = [Fraction(rows * block, blocks) for block in range(1, blocks)]
    lows, highs = [low] * len(exact), [high] * len(exact)
    while any(a < b for a, b in zip(lows, highs, strict=True)):  # the least with rank above the cut
        middle = [a + (b - a) // 2 for a, b in zip(lows, highs, strict=True)]
        _, at_most = counts(times, middle)
        for cut, place in enumerate(exact):
            if lows[cut] < highs[cut]:
                if at_most[cut] > math.floor(place):
                    highs[cut] = middle[cut]
                else:
                    lows[cut] = middle[cut] + 1
    less, at_most = counts(times, lows)
    after = _following(times, lows, high)
    return [
        value if under and place - int(under) <= int(upto) - place else later
        for value, later, place, under, upto in zip(lows, after, exact, less, at_most, strict=True)
    ]


def counts(times: Sequence[Times], values: Sequence[int]) -> tuple[Int64, Int64]:
    """How many rows have a time less than each value, and how many one of at most that."""
    wanted = np.array(values, dtype=np.int64)
    less, at_most = np.zeros((2, len(wanted)), dtype=np.int64)
    for run in _runs(times):
        less += np.searchsorted(run, wanted, side="left")
        at_most += np.searchsorted(run, wanted, side="right")
    return less, at_most


def _following(times: Sequence[Times], values: Sequence[int], high: int) -> list[int]:
    """The least time above each value, or ``high`` where there is none."""
    wanted = np.array(values, dtype=np.int64)
    found = np.full(len(wanted), high, dtype=np.int64)
    for run in _runs(times):
        at = np.searchsorted(run, wanted, side="right")
        inside = at < len(run)
        found[inside] = np.minimum(found[inside], run[at[inside]])
    return [int(value) for value in found]


def _runs(times: Sequence[Times]) -> Iterator[Int64]:
    """Each run, mapped; one file is open at a time."""
    for part in times:
        if sum(part.runs):
            mapped = np.memmap(part.file.here(), dtype=np.int64, mode="r")
            yield from np.split(mapped, np.cumsum(part.runs[:-1]))
