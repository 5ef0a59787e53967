"""Metrics of several runs beside each other: a panel a metric, a line a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator

from ddlflow.report.style import CLASS_COLOURS, figure, save, style

Line = tuple[str, Sequence[tuple[int, float]]]  # a run's name, and (epoch, value)
PANELS_A_ROW = 3


def write_lines(path: Path, metrics: Mapping[str, Sequence[Line]]) -> Path:
    """Draws each metric over the epochs into one PNG.

    Args:
        path: of the PNG.
        metrics: by name, the lines of the runs that have it.
    """
    columns = min(PANELS_A_ROW, len(metrics))
    rows = -(-len(metrics) // columns)
    with style():
        drawn = figure(4.6 * columns, 3.4 * rows + 0.6)
        panels = drawn.subplots(rows, columns, squeeze=False).reshape(-1)
        named: dict[str, Artist] = {}
        for panel, (name, lines) in zip(panels, metrics.items(), strict=False):
            for (run, points), colour in zip(lines, CLASS_COLOURS * len(lines), strict=False):
                epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
                (line,) = panel.plot(epochs, values, color=colour, marker=".")
                named.setdefault(run, line)
            panel.set(xlabel="epoch", ylabel=name)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for panel in panels[len(metrics) :]:
            panel.axis("off")
        drawn.legend(list(named.values()), list(named), loc="outside upper center", ncols=2)
        return save(drawn, path)
