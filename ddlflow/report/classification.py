"""Plots of a classifier, each from the numbers of ``curves`` (ddlflow.train.tasks)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ddlflow.data.scored import (
    ClassHistogram,
    FeatureCounts,
    Matrix,
    PrecisionRecallCurve,
    Reliability,
    RocCurve,
)
from ddlflow.report.style import (
    BLUE,
    CLASS_COLOURS,
    GREY,
    ORANGE,
    SEQUENTIAL,
    figure,
    shown,
    square,
)


def draw_roc(roc: RocCurve, auroc: float) -> Figure:
    """The true positive rate over the false positive rate."""
    drawn = figure(5.8, 5.8)
    axes = drawn.subplots()
    axes.plot(roc.fpr, roc.tpr, color=BLUE, label=f"model, AUROC = {shown(auroc)}")
    axes.fill_between(roc.fpr, roc.tpr, color=BLUE, alpha=0.08, linewidth=0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="chance, 0.5")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    square(axes)
    axes.legend(loc="lower right")
    return drawn


def draw_precision_recall(
    curve: PrecisionRecallCurve, average_precision: float, confusion: Matrix
) -> Figure:
    """Precision over recall, with the share of positive rows as what chance would reach."""
    drawn = figure(5.8, 5.8)
    axes = drawn.subplots()
    share = sum(confusion[1]) / max(1, sum(map(sum, confusion)))
    name = f"model, average precision = {shown(average_precision)}"
    # Steps, as average precision counts it: joining the points would promise too much.
    recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]
    axes.step(recall, precision, where="pre", color=BLUE, label=name)
    chance = f"chance, {shown(share)}"
    axes.axhline(share, color=GREY, linestyle="--", linewidth=1.2, label=chance)
    axes.set(xlabel="recall (true positive rate)", ylabel="precision")
    square(axes)
    axes.legend(loc="best")
    return drawn


def draw_calibration(reliability: Reliability, classes: list[str]) -> Figure:
    """The observed share of positives over the predicted probability, in groups of equal size."""
    predicted, observed = np.array(reliability.predicted), np.array(reliability.observed)
    rows = np.array(reliability.rows)
    drawn = figure(5.8, 6.5)
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="perfect")
    # Wilson's interval of one standard deviation: it has a length at 0 and 1 too.
    middle = (observed + 0.5 / rows) / (1 + 1 / rows)
    reach = np.sqrt(observed * (1 - observed) / rows + 0.25 / rows**2) / (1 + 1 / rows)
    name = f"model, mean |error| = {shown(reliability.error)}"
    axes.errorbar(
        predicted,
        observed,
        yerr=np.clip([observed - middle + reach, middle + reach - observed], 0, None),
        color=BLUE,
        marker="o",
        linewidth=1.5,
        elinewidth=1.5,
        capsize=2,
        label=name,
    )
    axes.set(
        xlabel=f"predicted probability of “{_short(classes[1])}”",
        ylabel=f"observed share of “{_short(classes[1])}”",
    )
    square(axes)
    greatest = max([0.0, *predicted, *(middle + reach)])
    if 0 < greatest < 0.6:  # rare positives: the whole square would be an empty one
        axes.set(xlim=(-0.01 * greatest, 1.3 * greatest), ylim=(-0.01 * greatest, 1.3 * greatest))
    # Below the axes: a model that is too sure or too unsure has points in any corner of them.
    drawn.legend(loc="outside lower center", ncols=2, title=_group_sizes(rows), title_fontsize=9.5)
    return drawn


def draw_scores(scores: ClassHistogram, classes: list[str]) -> Figure:
    """The model's output for each class: the second is filled, the first outlined."""
    drawn = figure()
    axes = drawn.subplots()
    edges, counts = np.array(scores.edges), np.array(scores.counts)
    _draw_classes(axes, edges, counts, classes, counts.sum(1))
    axes.set(
        xlabel=f"model output: probability of “{_short(classes[1])}”",
        ylabel="density of rows (each class: area 1)",
        xlim=(0, 1),
    )
    return drawn


def draw_feature(histogram: FeatureCounts, classes: list[str] | None) -> Figure:
    """A feature for each class, each scaled to area 1 over the shown range."""
    drawn = figure()
    axes = drawn.subplots()
    edges, counts = np.array(histogram.edges), np.array(histogram.counts)
    names = classes or ([str(i) for i in range(len(counts))] if len(counts) > 1 else ["rows"])
    _draw_classes(axes, edges, counts, names, counts.sum(1))
    axes.set(
        xlabel=histogram.feature,
        ylabel="density of rows" + (" (each class: area 1)" if len(counts) > 1 else ""),
        xlim=(edges[0], edges[-1]),
    )
    below, above, missing = sum(histogram.below), sum(histogram.above), sum(histogram.missing)
    total = max(1, counts.sum() + below + above + missing)
    notes = [
        f"{100 * rows / total:.2g} % {where}"
        for rows, where in ((below, "below"), (above, "above"), (missing, "missing"))
        if rows
    ]
    if notes:
        axes.set_title("not shown: " + ", ".join(notes), fontsize=9.5, color=GREY, loc="right")
    return drawn


def draw_confusion(confusion: Matrix, classes: list[str]) -> Figure:
    """Shares of each true class by predicted class; numbers in the cells while they can be read."""
    counts = np.array(confusion, dtype=np.float64)
    num_classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(3.6 + 0.42 * num_classes, 5.2, 13))
    drawn = figure(side + 0.9, side)
    axes = drawn.subplots()
    image = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    every = -(-num_classes // 50)  # more names than that would overlap
    ticks = np.arange(0, num_classes, every)
    names = [_short(classes[i]) for i in ticks]
    size = 10 if num_classes <= 20 else 8
    turned = max(map(len, names)) > max(2, 40 / num_classes)
    axes.set_xticks(ticks, names, fontsize=size, rotation=90 if turned else 0)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= 25:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                text = f"{100 * share:.0f}"
                if num_classes <= 5:
                    text = f"{100 * share:.1f} %\n{int(counts[row, column]):,}"
                axes.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=11 if num_classes <= 5 else 9 if num_classes <= 15 else 7,
                    color="white" if share > 0.55 else "#222222",
                )
    bar = drawn.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class" + (" (cells: %)" if 5 < num_classes <= 25 else ""))
    bar.outline.set_visible(False)
    return drawn


def _draw_classes(
    axes: Axes, edges: np.ndarray, counts: np.ndarray, classes: list[str], total: np.ndarray
) -> None:
    """Densities with their statistical errors; of two classes the second is filled."""
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    two = len(counts) == 2
    for i, row in enumerate(counts):
        scale = max(1, total[i]) * width
        density, error = row / scale, np.sqrt(row) / scale
        colour = (ORANGE, BLUE)[i] if two else CLASS_COLOURS[i % len(CLASS_COLOURS)]
        filled = i == 1 if two else len(counts) == 1
        axes.stairs(
            density,
            edges,
            color=colour,
            fill=filled,
            alpha=0.45 if filled else 1,
            linewidth=1.8,
            linestyle="-" if i < len(CLASS_COLOURS) else "--",
            label=f"{_short(classes[i], 26)} ({int(total[i]):,})",
            zorder=2 if filled else 3,
        )
        if filled:
            axes.stairs(density, edges, color=colour, linewidth=1.2, zorder=2.5)
        if len(counts) <= 2:
            axes.errorbar(
                middle, density, yerr=error, fmt="none", ecolor=colour, elinewidth=1, zorder=4
            )
    tops = counts + np.sqrt(counts) * (len(counts) <= 2)  # with the error bars drawn
    columns = 1 if len(counts) <= 3 else 2 if len(counts) <= 16 else 4
    highest = max(1e-12, float((tops / np.maximum(total, 1)[:, None] / width).max()))
    # Room for the legend above the highest bin.
    axes.set_ylim(0, highest * (1.1 + 0.08 * -(-len(counts) // columns)))
    axes.legend(ncols=columns, loc="upper right", fontsize=10.5 if len(counts) <= 16 else 7)


def _group_sizes(rows: np.ndarray) -> str:
    if not len(rows):
        return "no rows"
    return f"{len(rows)} groups of about {shown(round(float(np.median(rows))))} rows"


def _short(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
