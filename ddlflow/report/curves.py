"""Metrics of several runs beside each other: a panel a metric, a line a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator

from ddlflow.report.style import CLASS_COLOURS, figure, save, style

Line = tuple[str, Sequence[tuple[int, float]]]  # a run's name, and (epoch, value)
PANELS_A_ROW = 3
COLOURS = len(CLASS_COLOURS)
LINES = ("-", "--", ":")


def write_lines(path: Path, metrics: Mapping[str, Sequence[Line]]) -> Path:
    """Draws each metric over the epochs into one PNG.

    Args:
        path: of the PNG.
        metrics: by name, the lines of the runs that have it; at least one.
    """
    columns = min(PANELS_A_ROW, len(metrics))
    rows = -(-len(metrics) // columns)
    runs = list(dict.fromkeys(run for lines in metrics.values() for run, _ in lines))
    # A run has one colour in every panel; past the palette's end, another kind of line.
    looks = {
        run: {"color": CLASS_COLOURS[k % COLOURS], "linestyle": LINES[k // COLOURS % len(LINES)]}
        for k, run in enumerate(runs)
    }
    with style():
        names_high = 0.26 * -(-len(runs) // columns)
        drawn = figure(4.6 * columns, 3.4 * rows + 0.4 + names_high)
        panels = drawn.subplots(rows, columns, squeeze=False).reshape(-1)
        named: dict[str, Artist] = {}
        for panel, (name, lines) in zip(panels, metrics.items(), strict=False):
            for run, points in lines:
                epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
                (line,) = panel.plot(epochs, values, marker=".", **looks[run])
                named.setdefault(run, line)
            panel.set(xlabel="epoch", ylabel=name)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for panel in panels[len(metrics) :]:
            panel.axis("off")
        drawn.legend([named[run] for run in runs], runs, loc="outside upper center", ncols=columns)
        return save(drawn, path)
