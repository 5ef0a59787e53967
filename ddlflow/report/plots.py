"""The report of a run: the curves of ddlflow.train.tasks as plots, the metrics as a table.

Matplotlib takes a third of a second to import: import this module where something is drawn.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ddlflow.data.coefficient_table import CoefficientTable
from ddlflow.data.scored import BinaryCurves, Curves, FeatureCounts, RegressionCurves
from ddlflow.report.classification import (
    draw_calibration,
    draw_confusion,
    draw_feature,
    draw_precision_recall,
    draw_roc,
    draw_scores,
)
from ddlflow.report.coefficients import draw_coefficients, write_coefficients
from ddlflow.report.regression import draw_residuals
from ddlflow.report.style import BLUE, GREEN, GREY, ORANGE, figure, save_all, shown
from ddlflow.report.terms import notes_of

# "epoch", "loss" and, where there are validation rows, "val_<metric>": open, as metrics are.
EpochRow = Mapping[str, float | None]
# What a person says for a metric's name.
WORDS = {
    "loss": "Loss",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "f1": "F1",
    "f1_macro": "F1, mean over classes",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "mse": "Mean squared error",
    "rmse": "Root mean squared error",
    "mae": "Mean absolute error",
    "r2": "R²",
    "rows": "Rows",
    "unscored_rows": "Rows whose output is not finite",
}
CAPTIONS = {
    "loss_curves": "Training and validation over the epochs",
    "roc": "True against false positive rate at every threshold",
    "precision_recall": "Precision against recall at every threshold",
    "calibration": "How often a predicted probability comes true",
    "scores": "The model's output for each class",
    "confusion_matrix": "True against predicted class",
    "residuals": "Errors, and predicted against true values",
    "feature_histogram": "The chosen feature for each class",
    "coefficients": "The strongest coefficients",
}


def write_report(
    folder: Path,
    *,
    history: Sequence[EpochRow],
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    curves: Curves,
    classes: list[str] | None,
    histogram: FeatureCounts | None,
    title: str,
    label: str = "label",
    metric: str,
    coefficients: CoefficientTable | None = None,
) -> list[Path]:
    """Draws the plots of a run and writes its numbers.

    Args:
        folder: where to; made if it is not there, and files of the same names replaced.
        history: one row an epoch: "epoch", "loss", and where there are validation rows "val_loss"
            and "val_<metric>".
        metrics: `Scores.compute()` of the rows judged.
        baseline: the same of a model without features.
        curves: `Scores.curves()` of them. What the rows do not define (the ROC of one class) is
            not drawn.
        classes: names of the classes in the order of their numbers; none for a regression.
        histogram: `FeatureHistogram.curves()`, or none.
        title: the heading of report.md and of every plot.
        label: the label column's name, for axes of a regression.
        metric: the second panel of the loss curves.
        coefficients: of a linear model.

    Returns:
        The files written: the PNGs, coefficients.csv of a linear model, metrics.json (nan is null
        there) and report.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[], Figure]] = {}
    if history:
        plots["loss_curves"] = lambda: draw_loss(history, metric)
    plots |= _of_curves(curves, metrics, classes, label)
    if histogram is not None:
        plots["feature_histogram"] = lambda: draw_feature(histogram, classes)
    about = []
    if coefficients is not None:
        about = ["", *notes_of(coefficients), "All: coefficients.csv."]
        plots["coefficients"] = lambda: draw_coefficients(coefficients)
    files = save_all(folder, plots, title)
    if coefficients is not None:
        files.append(write_coefficients(folder / "coefficients.csv", coefficients))
    files += [folder / "metrics.json", folder / "report.md"]
    numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    files[-2].write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    text = markdown(title, metrics, baseline, list(plots)) + "\n".join(about)
    files[-1].write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return files


def _of_curves(
    curves: Curves, metrics: Mapping[str, float], classes: list[str] | None, label: str
) -> dict[str, Callable[[], Figure]]:
    """The plot of each curve that there is, in the order of the report."""
    found: dict[str, Callable[[], Figure]] = {}
    if isinstance(curves, RegressionCurves):
        found["residuals"] = lambda: draw_residuals(curves, label)
        return found
    confusion = curves.confusion
    names = classes or [str(i) for i in range(len(confusion))]
    if isinstance(curves, BinaryCurves):
        roc, precision_recall = curves.roc, curves.precision_recall
        if roc is not None:
            found["roc"] = lambda: draw_roc(roc, metrics["auroc"])
        if precision_recall is not None:
            found["precision_recall"] = lambda: draw_precision_recall(
                precision_recall, metrics["average_precision"], confusion
            )
        found["calibration"] = lambda: draw_calibration(curves.reliability, names)
        found["scores"] = lambda: draw_scores(curves.scores, names)
    found["confusion_matrix"] = lambda: draw_confusion(confusion, names)
    return found


def markdown(
    title: str, metrics: Mapping[str, float], baseline: Mapping[str, float], plots: list[str]
) -> str:
    """report.md: the metrics as a table, then the plots, which lie beside it."""
    lines = [f"# {title}", "", "| metric | value | baseline |", "|---|---:|---:|"]
    for name, value in metrics.items():
        beside = shown(baseline[name]) if name in baseline else ""
        lines.append(f"| {WORDS.get(name, name)} | {shown(value)} | {beside} |")
    for name in plots:
        lines += ["", f"## {CAPTIONS[name]}", "", f"![{CAPTIONS[name]}]({name}.png)"]
    return "\n".join(lines) + "\n"


def draw_loss(history: Sequence[EpochRow], metric: str) -> Figure:
    """Training and validation loss over epochs; beside it the metric, where it was validated."""
    values = _series(history, f"val_{metric}")
    drawn = figure(10.5 if values[0] else 6.6, 4.4)
    axes = drawn.subplots(1, 2 if values[0] else 1, squeeze=False)[0]
    train, validation = _series(history, "loss"), _series(history, "val_loss")
    epochs, _ = _series(history, "epoch")
    axes[0].plot(*train, color=BLUE, marker="o", label="training")
    if validation[0]:
        axes[0].plot(*validation, color=ORANGE, marker="s", linestyle="--", label="validation")
        best = min(range(len(validation[0])), key=validation[1].__getitem__)
        axes[0].axvline(validation[0][best], color=GREY, linewidth=1, linestyle=":", zorder=1)
        best_at = f"best validation: epoch {validation[0][best]}"
        axes[0].plot([], [], color=GREY, linewidth=1, linestyle=":", label=best_at)
    axes[0].set(xlabel="epoch", ylabel="mean loss per row")
    losses = [loss for loss in train[1] + validation[1] if loss > 0]
    if losses and max(losses) > 50 * min(losses):
        axes[0].set_yscale("log")
    axes[0].legend()
    if values[0]:
        axes[1].plot(*values, color=GREEN, marker="D", label=f"last: {shown(values[1][-1])}")
        axes[1].set(xlabel="epoch", ylabel=f"validation {WORDS.get(metric, metric)}")
        axes[1].legend(handlelength=1.5)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    return drawn


def _series(history: Sequence[EpochRow], name: str) -> tuple[list[float], list[float]]:
    """The epochs in which a value was finite, and the values."""
    found = [(row["epoch"], row.get(name)) for row in history]
    points = [
        (epoch, value)
        for epoch, value in found
        if epoch is not None and value is not None and math.isfinite(value)
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]
