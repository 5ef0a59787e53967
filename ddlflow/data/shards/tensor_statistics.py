"""Exact statistics of a tensor or sequence: each element's, or one for all of them.

Sums of bytes and of other small integers are kept as integers, so that their mean and deviation are
exact, however many rows there are and in whatever order their parts are merged. Of other numbers
they are those of ``statistics``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ddlflow.data.fields import Field
from ddlflow.data.shards.statistics import Statistics, empty, merge, of_column, of_facts

Array = npt.NDArray[Any]
SMALL = 2  # bytes of an integer whose squares are added up as integers of 64 bits


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """What is known of a field over some samples.

    Attributes:
        elements: of its elements, or of all its numbers as one; ``rows`` counts the numbers of
            each, there or not.
        sums: of each element of a small integer, exactly; None for other numbers.
        squares: sums of their squares, likewise.
        empty: samples that are a sequence of no steps.
        longest: steps of the longest sequence.
    """

    elements: Statistics
    sums: tuple[int, ...] | None
    squares: tuple[int, ...] | None
    empty: int = 0
    longest: int = 0

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Float64 [elements]."""
        return self.elements.mean

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance, float64 [elements]."""
        return self.elements.variance

    @property
    def is_constant(self) -> bool:
        """Whether all samples are alike; sequences may differ by their length."""
        low, high = self.elements.minimum, self.elements.maximum
        return self.longest == 0 and bool(np.array_equal(low, high, equal_nan=True))

    @property
    def replaced(self) -> int:
        """Numbers that are missing or infinite."""
        return int(self.elements.missing.sum() + self.elements.infinite.sum())

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        exact = {"sums": self.sums, "squares": self.squares}
        counts = {"empty": self.empty, "longest": self.longest}
        return {"elements": self.elements.to_json(), **exact, **counts}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TensorStatistics":
        """The inverse of ``to_json``, bit for bit."""
        sums, squares = (
            None if value[name] is None else tuple(value[name]) for name in ("sums", "squares")
        )
        elements = Statistics.from_json(value["elements"])
        return cls(elements, sums, squares, value["empty"], value["longest"])


def of_values(
    values: Array, field: Field, counts: npt.NDArray[np.int64] | None = None
) -> TensorStatistics:
    """Statistics of a field's values; numbers that float32 has as infinite become NaN in place.

    Args:
        values: [m, *shape], samples or steps, C-contiguous and writable.
        field: whose they are.
        counts: of a sequence, the steps of each sample.
    """
    columns = values.reshape(-1, field.num_statistics)  # one column where all are one
    exact = _exact(columns) if field.is_whole and values.dtype.itemsize <= SMALL else None
    facts = np.empty((7, field.num_statistics))
    for k in range(field.num_statistics):
        facts[:, k] = _facts(columns[:, k], is_exact=exact is not None)
    elements = of_facts(len(columns), facts, np.zeros(0, dtype=np.int64))
    empty_runs, longest = 0, 0
    if counts is not None and len(counts):
        empty_runs, longest = int(np.count_nonzero(counts == 0)), int(counts.max())
    sums, squares = exact if exact is not None else (None, None)
    return _settled(TensorStatistics(elements, sums, squares, empty_runs, longest))


def no_values(field: Field) -> TensorStatistics:
    """The statistics of no values."""
    return of_values(np.empty((0, *field.shape), field.dtype), field)


def merge_tensors(parts: Iterable[TensorStatistics], start: TensorStatistics) -> TensorStatistics:
    """The statistics of all samples together.

    Args:
        parts: in a fixed order: the last bits of fractions depend on it.
        start: of ``no_values``.
    """
    found = list(parts)
    total = [start, *found]
    size = len(start.mean)
    sums = squares = None
    if start.sums is not None:
        sums = _added([one.sums for one in total], size)
        squares = _added([one.squares for one in total], size)
    merged = TensorStatistics(
        elements=merge((one.elements for one in found), empty(size, 0)),
        sums=sums,
        squares=squares,
        empty=sum(one.empty for one in found),
        longest=max((one.longest for one in found), default=0),
    )
    return _settled(merged)


def merge_two(one: TensorStatistics, other: TensorStatistics) -> TensorStatistics:
    """The statistics of the samples of both: as ``merge_tensors`` of parts that come in turn."""
    size = len(one.mean)
    zeros = None if one.sums is None else (0,) * size
    return merge_tensors([one, other], TensorStatistics(empty(size, 0), zeros, zeros))


def _added(parts: Sequence[tuple[int, ...] | None], size: int) -> tuple[int, ...]:
    return tuple(sum(part[k] for part in parts if part is not None) for k in range(size))


def _exact(columns: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sums and sums of squares of small integers [n, k], of each column."""
    sums = columns.sum(axis=0, dtype=np.int64)
    squares = np.einsum("ij,ij->j", columns, columns, dtype=np.int64, casting="safe")
    return tuple(sums.tolist()), tuple(squares.tolist())


def _facts(column: Array, *, is_exact: bool) -> tuple[float, ...]:
    """Count, mean, m2, minimum, maximum, missing, infinite of one element."""
    if is_exact:
        if not column.size:
            return (0, *[np.nan] * 4, 0, 0)
        low, high = float(column.min()), float(column.max())
        return (column.size, np.nan, np.nan, low, high, 0, 0)  # the sums tell the rest
    with np.errstate(over="ignore"):
        numbers = np.array(column, dtype=np.float32)
    found = of_column(numbers)
    if found[-1]:
        column[np.isnan(numbers)] = np.nan
    return found


def _settled(found: TensorStatistics) -> TensorStatistics:
    """Mean and squared distances of small integers by their exact sums."""
    if found.sums is None or found.squares is None:
        return found
    mean, m2 = found.elements.mean.copy(), found.elements.m2.copy()
    for k, (total, square) in enumerate(zip(found.sums, found.squares, strict=True)):
        count = int(found.elements.count[k])
        if count:
            mean[k] = float(Fraction(total, count))
            m2[k] = float(Fraction(square * count - total * total, count))
    return replace(found, elements=replace(found.elements, mean=mean, m2=m2))
