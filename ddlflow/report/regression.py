"""Plots of a regression, from the plain numbers of ``curves`` (ddlflow.train.tasks)."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ddlflow.data.scored import RegressionCurves
from ddlflow.report.style import BLUE, COUNTS, GREY, RED, figure

_PLAIN = 1000  # the largest count whose colour bar has plain numbers, not powers of ten


def draw_residuals(curves: RegressionCurves, label: str) -> Figure:
    """The histogram of the errors, and beside it predicted against true values."""
    drawn = figure(11.5, 5.0)
    left, right = drawn.subplots(1, 2)
    residuals, plane = curves.residuals, curves.predicted_against_true
    left.stairs(residuals.counts, residuals.edges, color=BLUE, fill=True, alpha=0.45)
    left.stairs(residuals.counts, residuals.edges, color=BLUE, linewidth=1.2)
    left.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    left.set(xlabel=f"predicted - true {label}", ylabel="rows")
    left.set_xlim(residuals.edges[0], residuals.edges[-1])
    left.set_ylim(bottom=0)
    outside = residuals.below + residuals.above
    if outside:
        share = 100 * outside / max(1, outside + sum(residuals.counts))
        left.set_title(f"not shown: {share:.2g} % beyond", fontsize=9.5, color=GREY, loc="right")
    edges, counts = np.array(plane.edges), np.array(plane.counts)
    shown = np.ma.masked_equal(counts.T, 0)  # an empty cell stays white
    largest = max(2, int(counts.max()))
    norm = LogNorm(1, largest)
    mesh = right.pcolormesh(edges, edges, shown, cmap=COUNTS, norm=norm)
    ends = (edges[0], edges[-1])
    right.plot(ends, ends, color=RED, linestyle="--", linewidth=1.4)
    right.set(xlabel=f"true {label}", ylabel=f"predicted {label}", xlim=ends, ylim=ends)
    right.set_aspect("equal")
    bar = drawn.colorbar(mesh, ax=right, shrink=0.85)
    if largest <= _PLAIN:
        ticks = [count for count in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count <= largest]
        bar.set_ticks(ticks, labels=[str(count) for count in ticks])
        bar.minorticks_off()
    bar.set_label("rows")
    if plane.outside:
        share = 100 * plane.outside / max(1, plane.outside + counts.sum())
        note = f"not shown: {share:.2g} % predicted beyond"
        right.set_title(note, fontsize=9.5, color=GREY, loc="right")
    return drawn
