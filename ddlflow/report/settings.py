"""Plots of a search's settings, from the rows of its table (ddlflow.sweep.choose.table)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ddlflow.report.plots import WORDS
from ddlflow.report.scales import Scale, two_lines
from ddlflow.report.style import BLUE, GREY, RED, figure, shown
from ddlflow.report.trials import Better, Rows, best_of, done, spread_of, worst_first

SCORES = "viridis"  # told apart with any kind of colour vision, and in grey; the best are dark
NOT_SET = -0.13  # where a line passes an axis whose setting its trial does not have


def draw_parallel(rows: Rows, scales: Sequence[Scale], metric: str, better: Better) -> Figure:
    """Every trial as a line through its settings to its score."""
    drawn = figure(max(6.6, 1.55 * (len(scales) + 1) + 1.8), 5.4)
    axes = drawn.subplots()
    colours = _coloured(rows, better)
    trials = worst_first(rows, better)
    pruned = [row for row in rows if row.status == "pruned"]
    heights = [_heights([*pruned, *(trial.row for trial in trials)], scale) for scale in scales]
    low, high = spread_of([trial.score for trial in trials], better)
    winner = best_of(rows, better)
    alpha = float(np.clip(45 / max(1, len(trials)), 0.2, 0.75))
    for k in range(len(pruned)):  # they end before the score: that of fewer epochs is another
        line = [height[k] for height in heights]
        axes.plot(line, color=GREY, linewidth=0.8, alpha=0.25, zorder=1)
    for k, trial in enumerate(trials, len(pruned)):
        score = (trial.score - low) / (high - low)
        line = [*(height[k] for height in heights), float(np.clip(score, 0, 1))]
        if winner is not None and trial.row is winner.row:
            axes.plot(line, color="white", linewidth=5, zorder=4)
            axes.plot(line, color=RED, linewidth=2.6, zorder=5)
        else:
            colour = colours.to_rgba(np.asarray(trial.score))
            axes.plot(line, color=colour, linewidth=1.3, alpha=alpha, zorder=2)
    _upright(axes, scales, missing=any(min(height, default=0) < 0 for height in heights))
    last = len(scales)
    marks = [mark for mark in MaxNLocator(5).tick_values(low, high) if low <= mark <= high]
    _draw_axis(axes, last, [((mark - low) / (high - low), shown(float(mark))) for mark in marks])
    axes.set_xticks(
        range(last + 1),
        [*(two_lines(scale.name) for scale in scales), WORDS.get(metric, metric)],
        fontsize=9.5,
    )
    _beside(axes, rows, colours, WORDS.get(metric, metric), cells=False)
    if winner is not None:
        name = f"best: trial {winner.row.number}, {shown(winner.score)}"
        axes.legend(
            [Line2D([], [], color=RED, linewidth=2.6)],
            [name],
            loc="lower right",
            bbox_to_anchor=(1, 1.0),
            borderaxespad=0.2,
        )
    return drawn


def _heights(trials: Rows, scale: Scale) -> list[float]:
    """Where each line meets an axis: of one listed value, the lines fan out by their scores."""
    heights = [scale.at(row.values) for row in trials]
    found = [NOT_SET if height is None else height for height in heights]
    if scale.listed is None:
        return found
    reach = 0.26 / len(scale.listed)
    for place in set(found):
        same_place = [k for k, height in enumerate(found) if height == place]
        if len(same_place) > 1:
            offsets = np.linspace(-reach, reach, len(same_place)) * (place >= 0)
            for k, offset in zip(same_place, offsets, strict=True):
                found[k] = place + float(offset)
    return found


def _upright(axes: Axes, scales: Sequence[Scale], *, missing: bool) -> None:
    """An axis a setting, with its own ticks."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.45, len(scales) + 0.12), ylim=(NOT_SET - 0.06 if missing else -0.03, 1.03))
    for k, scale in enumerate(scales):
        _draw_axis(axes, k, scale.ticks)
    if missing:
        axes.text(-0.42, NOT_SET, "not set", ha="left", va="center", fontsize=8.5, color=GREY)


def _draw_axis(axes: Axes, place: int, ticks: Sequence[tuple[float, str]]) -> None:
    """One upright axis with its (position, text) on the left."""
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
    look: dict[str, Any] = {
        "ha": "right",
        "va": "center",
        "fontsize": 8.5,
        "bbox": box,
        "zorder": 6,
    }
    axes.plot([place, place], [0, 1], color=GREY, linewidth=1, zorder=3)
    for position, text in ticks:
        axes.plot([place - 0.02, place], [position] * 2, color=GREY, linewidth=1, zorder=3)
        axes.text(place - 0.04, position, text, **look)


def draw_pair(
    rows: Rows, across: Scale, up: Scale, metric: str, better: Better, *, others: bool
) -> Figure:
    """Scores over two settings: a field of cells where both are listed, else points.

    Args:
        rows: of the table.
        across: the setting on the horizontal axis.
        up: the setting on the vertical axis.
        metric: of the scores.
        better: which scores are.
        others: whether more settings were varied; a cell then shows its best trial.
    """
    both = across.listed is not None and up.listed is not None
    wide = len(across.listed or ()) * 0.9 + 2.6 if both else 6.9
    high = len(up.listed or ()) * 0.62 + 1.7 if both else 5.2
    drawn = figure(float(np.clip(wide, 6.2, 13)), float(np.clip(high, 4.0, 10)))
    axes = drawn.subplots()
    colours = _coloured(rows, better)
    axes.grid(visible=not both)
    draw = _draw_cells if both else _draw_points
    draw(axes, rows, (across, up), colours, better)
    axes.set_xticks([at for at, _ in across.ticks], [text for _, text in across.ticks])
    axes.set_yticks([at for at, _ in up.ticks], [text for _, text in up.ticks])
    longest = max(len(text) for _, text in across.ticks)
    if longest * len(across.ticks) > 70 and longest > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0 if both else 3)
    axes.set(xlabel=across.name, ylabel=up.name, xlim=(0, 1), ylim=(0, 1))
    cells = " (a cell: its best trial)" if both and others else ""
    _beside(axes, rows, colours, f"{WORDS.get(metric, metric)}{cells}", cells=both)
    return drawn


def _draw_cells(
    axes: Axes, rows: Rows, scales: tuple[Scale, Scale], colours: ScalarMappable, better: Better
) -> None:
    across, up = scales
    columns, lines = len(across.listed or ()), len(up.listed or ())
    field = np.full((lines, columns), np.nan)
    winner, best_cell = best_of(rows, better), None
    for trial in worst_first(rows, better):
        x, y = across.at(trial.row.values), up.at(trial.row.values)
        if x is not None and y is not None:
            field[int(y * lines), int(x * columns)] = trial.score
            if winner is not None and trial.row is winner.row:
                best_cell = (int(x * columns), int(y * lines))
    axes.set_facecolor("#EEEEEE")  # of a cell without a trial
    x_edges, y_edges = np.linspace(0, 1, columns + 1), np.linspace(0, 1, lines + 1)
    low, high = colours.get_clim()
    shades = np.ma.masked_invalid(field)
    axes.pcolormesh(
        x_edges,
        y_edges,
        shades,
        cmap=colours.cmap,
        vmin=low,
        vmax=high,
        edgecolors="white",
        linewidth=1.5,
    )
    axes.spines[:].set_visible(False)
    if columns * lines <= 150:
        for (line, column), score in np.ndenumerate(field):
            if np.isfinite(score):
                dark = _is_dark(colours.to_rgba(score))
                axes.text(
                    (column + 0.5) / columns,
                    (line + 0.5) / lines,
                    f"{score:.4f}" if 1e-3 <= abs(score) < 10 else shown(score),
                    ha="center",
                    va="center",
                    fontsize=10 if columns <= 8 else 7.5,
                    color="white" if dark else "#222222",
                )
    if best_cell is not None:
        column, line = best_cell
        left, foot = column / columns, line / lines
        right, top = left + 1 / columns, foot + 1 / lines
        outline = ([left, right, right, left, left], [foot, foot, top, top, foot])
        axes.plot(*outline, color=RED, linewidth=3, clip_on=False, zorder=4)


def _draw_points(
    axes: Axes, rows: Rows, scales: tuple[Scale, Scale], colours: ScalarMappable, better: Better
) -> None:
    across, up = scales
    scored = [(trial.row, trial.score) for trial in worst_first(rows, better)]
    pruned = [(row, None) for row in rows if row.status == "pruned"]
    winner = best_of(rows, better)
    # What is listed is spread a little, the same way each time, so that points can be told apart.
    spread = np.random.default_rng(0)
    for row, score in [*pruned, *scored]:
        x, y = across.at(row.values), up.at(row.values)
        right, top = spread.uniform(-0.3, 0.3, size=2)
        if x is None or y is None:
            continue
        x += right / len(across.listed) if across.listed else 0
        y += top / len(up.listed) if up.listed else 0
        if score is None:
            axes.scatter(x, y, s=16, facecolors="none", edgecolors=GREY, linewidths=0.8, zorder=2)
            continue
        is_best = winner is not None and row is winner.row
        axes.scatter(
            x,
            y,
            s=110 if is_best else 42,
            color=[colours.to_rgba(np.asarray(score))],
            edgecolors=RED if is_best else "white",
            linewidths=2.4 if is_best else 0.6,
            zorder=4 if is_best else 3,
        )


def draw_importance(importances: Mapping[str, float]) -> Figure:
    """Each setting's part in reaching the best scores, the greatest on top."""
    names = list(importances)
    drawn = figure(7.2, float(np.clip(0.5 * len(names) + 1.3, 2.4, 9)))
    axes = drawn.subplots()
    parts = [100 * importances[name] for name in names]
    places = np.arange(len(names))[::-1]
    axes.barh(places, parts, color=BLUE, alpha=0.75, height=0.62)
    for place, part in zip(places, parts, strict=True):
        axes.text(part + 1, place, f"{part:.0f} %", va="center", fontsize=10)
    axes.set_yticks(places, names)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="importance for the best scores (%)", xlim=(0, max([*parts, 1]) * 1.14))
    return drawn


def _coloured(rows: Rows, better: Better) -> ScalarMappable:
    """Colours of scores, dark for the best; the far worse ones share the lightest."""
    low, high = spread_of([trial.score for trial in done(rows)], better)
    palette = f"{SCORES}_r" if better == "higher" else SCORES
    return ScalarMappable(Normalize(low, high, clip=True), palette)


def _beside(axes: Axes, rows: Rows, colours: ScalarMappable, label: str, *, cells: bool) -> None:
    """The colours' scale, and a word about the trials that have no colour."""
    low, high = colours.get_clim()
    scores = [trial.score for trial in done(rows)]
    assert low is not None
    assert high is not None
    end = "min" if min(scores) < low else "max" if max(scores) > high else "neither"
    drawn = axes.get_figure(root=True)
    assert drawn is not None
    bar = drawn.colorbar(colours, ax=axes, extend=end, shrink=0.85, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    pruned, failed = (sum(row.status == s for row in rows) for s in ("pruned", "failed"))
    notes = [f"grey: {pruned} pruned"] if pruned and not cells else []
    unseen = [*([f"{pruned} pruned"] if pruned and cells else []), f"{failed} failed"]
    notes += [f"not shown: {', '.join(text for text in unseen if text != '0 failed')}"]
    text = "; ".join(note for note in notes if note != "not shown: ")
    axes.set_title(text, fontsize=9.5, color=GREY, loc="left")


def _is_dark(colour: Any) -> bool:
    """Whether white text reads better on a colour than black."""
    red, green, blue = colour[:3]
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.55)
