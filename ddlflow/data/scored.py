"""What a model came to on the rows of a split: its scores, and the curves that a report draws.

``ddlflow.train.tasks`` counts the rows and ``ddlflow.report`` draws the counts. Report may not
import train, so the contract stands in the room below both: it is of rows that were counted.

A count is a number of rows: whole, or where rows have weights in rows of mean weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Number = int | float
Matrix = Sequence[Sequence[Number]]


@dataclass(frozen=True, slots=True)
class RocCurve:
    """False and true positive rate at each threshold of the probability."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    threshold: Sequence[float]


@dataclass(frozen=True, slots=True)
class PrecisionRecallCurve:
    """Recall and precision at each threshold of the probability."""

    recall: Sequence[float]
    precision: Sequence[float]
    threshold: Sequence[float]


@dataclass(frozen=True, slots=True)
class ClassHistogram:
    """Rows of each class [classes, bins] between edges [bins + 1]."""

    edges: Sequence[float]
    counts: Matrix


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed share of positives in groups of about equally many rows.

    Attributes:
        predicted: the mean probability of each group.
        observed: the share of positives in it.
        rows: in it.
        error: the expected calibration error, the mean over rows of |predicted - observed|; nan
            of no rows.
    """

    predicted: Sequence[float]
    observed: Sequence[float]
    rows: Sequence[Number]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCurves:
    """Of a binary classifier.

    Attributes:
        roc: None where a class has no row, as the next two.
        precision_recall: see there.
        auroc_within: what binning the logit may have changed of AUROC, at most.
        scores: rows over the probability.
        reliability: of that probability.
        confusion: rows by true (first) and predicted class.
    """

    roc: RocCurve | None
    precision_recall: PrecisionRecallCurve | None
    auroc_within: float | None = None
    scores: ClassHistogram
    reliability: Reliability
    confusion: Matrix


@dataclass(frozen=True, slots=True)
class MulticlassCurves:
    """Of a classifier of many classes: rows by true (first) and predicted class."""

    confusion: Matrix


@dataclass(frozen=True, slots=True)
class ResidualHistogram:
    """Rows [bins] between edges [bins + 1] of predicted less true value, and outside of them."""

    edges: Sequence[float]
    counts: Sequence[Number]
    below: int
    above: int


@dataclass(frozen=True, slots=True)
class Plane:
    """Rows by true (first) and predicted value, edges [bins + 1] for both, and rows outside."""

    edges: Sequence[float]
    counts: Matrix
    outside: int


@dataclass(frozen=True, slots=True)
class RegressionCurves:
    """Of a regression, in the unit of its label."""

    residuals: ResidualHistogram
    predicted_against_true: Plane


Curves = BinaryCurves | MulticlassCurves | RegressionCurves


@dataclass(frozen=True, slots=True)
class FeatureCounts:
    """Rows of each class over one feature.

    Attributes:
        feature: its name.
        edges: of the bins [bins + 1].
        counts: of each class in each bin [classes, bins].
        below: the first edge, of each class.
        above: the last one, likewise.
        missing: likewise.
    """

    feature: str
    edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    below: Sequence[int]
    above: Sequence[int]
    missing: Sequence[int]


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's scores on a split.

    Attributes:
        metrics: by name; nan where the rows do not define it.
        baseline: those of a model without features that are defined for it.
        predicted_classes: how many classes it predicts; None of a regression.
        curves: for the plots.
        histogram: of the feature that the pipeline names, if it names one.
    """

    metrics: Mapping[str, float]
    baseline: Mapping[str, float]
    predicted_classes: int | None
    curves: Curves
    histogram: FeatureCounts | None
