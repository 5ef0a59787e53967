"""What is measured of each built-in task, known before any data, and without PyTorch.

A run whose stages are all cached, `check` and a search's choice ask for names and directions alone.
"""

from dataclasses import dataclass
from typing import Literal

from ddlflow.spec.pipeline import ObjectiveName

Better = Literal["higher", "lower"]
PREDICTED = (
    "predicted_classes"  # reported after an epoch beside the metrics, where there are classes
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that tells how good a model is, and which of two is the better one."""

    name: str
    better: Better


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured of a kind of task; known before any data.

    Attributes:
        metrics: in the order in which they are shown.
        searched: the name of the one that a search goes by, unless it names another.
        drawn: of the one that is drawn over the epochs beside the loss.
        judged: of the one by which a model is held against the baseline: what it minimises.
        baseline: what the baseline knows, for a sentence.
        has_classes: whether it is reported how many classes are predicted of any row.
    """

    metrics: tuple[Metric, ...]
    searched: str
    drawn: str
    judged: str
    baseline: str
    has_classes: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics."""
        return tuple(metric.name for metric in self.metrics)

    @property
    def reported(self) -> tuple[str, ...]:
        """The names of what is reported of the validation rows after each epoch."""
        return (*self.names, PREDICTED) if self.has_classes else self.names

    def better(self, name: str) -> Better:
        """Which of two values of a metric is the better one."""
        return {metric.name: metric.better for metric in self.metrics}[name]


def _metrics(higher: tuple[str, ...], names: tuple[str, ...]) -> tuple[Metric, ...]:
    return tuple(Metric(name, "higher" if name in higher else "lower") for name in names)


BINARY = Measures(
    metrics=_metrics(
        ("auroc", "average_precision", "accuracy", "f1"),
        ("loss", "auroc", "average_precision", "accuracy", "f1", "log_loss", "brier"),
    ),
    searched="auroc",
    drawn="auroc",
    judged="log_loss",
    baseline="classes' shares",
    has_classes=True,
)
MULTICLASS = Measures(
    metrics=_metrics(("accuracy", "f1_macro"), ("loss", "accuracy", "f1_macro", "log_loss")),
    searched="accuracy",
    drawn="accuracy",
    judged="log_loss",
    baseline="classes' shares",
    has_classes=True,
)
REGRESSION = Measures(
    metrics=_metrics(("r2",), ("loss", "mse", "rmse", "mae", "r2")),
    searched="loss",
    drawn="r2",
    judged="mse",
    baseline="mean label",
)
BUILT_IN: dict[ObjectiveName, Measures] = {
    "binary": BINARY,
    "multiclass": MULTICLASS,
    "regression": REGRESSION,
}


def measures_of(name: ObjectiveName) -> Measures:
    """What is measured where labels are read so."""
    return BUILT_IN[name]
