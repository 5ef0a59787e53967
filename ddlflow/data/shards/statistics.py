"""Exact statistics of rows, merged shard by shard in a fixed order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of the F numeric features of some rows.

    Attributes:
        rows: their number.
        count: int64 [F] values that are there and finite.
        mean: float64 [F]; NaN where count is 0, as for the next four.
        m2: float64 [F] sum of squared distances from the mean.
        minimum: float64 [F].
        maximum: float64 [F].
        missing: int64 [F] null or NaN in the source.
        infinite: int64 [F] infinite in the source.
        class_counts: int64 [classes]; empty for a regression.
    """

    rows: int
    count: Int64
    mean: Float64
    m2: Float64
    minimum: Float64
    maximum: Float64
    missing: Int64
    infinite: Int64
    class_counts: Int64

    @property
    def variance(self) -> Float64:
        """Population variance float64 [F]: the mean squared distance from the mean."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m2 / self.count

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers; what is not finite is null, as JSON knows no NaN."""
        return {
            name: getattr(self, name)
            if name == "rows"
            else [v if np.isfinite(v) else None for v in getattr(self, name).tolist()]
            for name in self.__slots__
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Statistics":
        """The inverse of ``to_json``, bit for bit."""

        def decimals(name: str) -> Float64:
            return np.array(value[name], dtype=np.float64)  # None becomes NaN

        def integers(name: str) -> Int64:
            return np.array(value[name], dtype=np.int64)

        return cls(
            rows=value["rows"],
            count=integers("count"),
            mean=decimals("mean"),
            m2=decimals("m2"),
            minimum=decimals("minimum"),
            maximum=decimals("maximum"),
            missing=integers("missing"),
            infinite=integers("infinite"),
            class_counts=integers("class_counts"),
        )


def empty(num_features: int, num_classes: int) -> Statistics:
    """The statistics of no rows: what merging starts from."""

    def zeros(size: int) -> Int64:
        return np.zeros(size, dtype=np.int64)

    def nans() -> Float64:
        return np.full(num_features, np.nan)

    return Statistics(
        rows=0,
        count=zeros(num_features),
        mean=nans(),
        m2=nans(),
        minimum=nans(),
        maximum=nans(),
        missing=zeros(num_features),
        infinite=zeros(num_features),
        class_counts=zeros(num_classes),
    )


def of_column(values: npt.NDArray[np.float32]) -> tuple[int, float, float, float, float, int, int]:
    """Statistics of one column; infinities in ``values`` become NaN in place.

    Two passes in float64: numpy's pairwise sum, then squared distances from the mean. ``einsum``
    and not ``dot``: the last bits must not depend on the number of BLAS threads.

    Returns:
        count, mean, m2, minimum, maximum, missing, infinite.
    """
    missing = infinite = 0
    low, high = (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)
    finite = values
    if not (np.isfinite(low) and np.isfinite(high)):
        missing = int(np.count_nonzero(np.isnan(values)))
        values[np.isinf(values)] = np.nan
        finite = values[~np.isnan(values)]
        infinite = values.size - missing - finite.size
        if not finite.size:
            return 0, np.nan, np.nan, np.nan, np.nan, missing, infinite
        low, high = float(finite.min()), float(finite.max())
    wide = finite.astype(np.float64)
    mean = float(wide.sum() / wide.size)
    wide -= mean
    m2 = float(np.einsum("i,i->", wide, wide))
    return finite.size, mean, m2, low, high, missing, infinite


def of_facts(rows: int, facts: Float64, class_counts: Int64) -> Statistics:
    """The statistics of some rows from what `of_column` says of each feature.

    Args:
        rows: their number.
        facts: [7, F], a column of it one feature's.
        class_counts: [classes]; empty for a regression.
    """
    count, mean, m2, minimum, maximum, missing, infinite = facts
    return Statistics(
        rows=rows,
        count=count.astype(np.int64),
        mean=mean,
        m2=m2,
        minimum=minimum,
        maximum=maximum,
        missing=missing.astype(np.int64),
        infinite=infinite.astype(np.int64),
        class_counts=class_counts,
    )


def merge(parts: Iterable[Statistics], start: Statistics) -> Statistics:
    """The statistics of all rows together.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Args:
        parts: in a fixed order: the last bits depend on it.
        start: from ``empty``.
    """
    total = start
    for part in parts:
        count = total.count + part.count
        with np.errstate(invalid="ignore", divide="ignore"):
            delta = part.mean - total.mean
            mean = total.mean + delta * (part.count / count)
            m2 = total.m2 + part.m2 + delta * delta * (total.count * (part.count / count))
        only_part, only_total = total.count == 0, part.count == 0
        total = Statistics(
            rows=total.rows + part.rows,
            count=count,
            mean=np.where(only_part, part.mean, np.where(only_total, total.mean, mean)),
            m2=np.where(only_part, part.m2, np.where(only_total, total.m2, m2)),
            minimum=np.fmin(total.minimum, part.minimum),
            maximum=np.fmax(total.maximum, part.maximum),
            missing=total.missing + part.missing,
            infinite=total.infinite + part.infinite,
            class_counts=total.class_counts + part.class_counts,
        )
    return total
