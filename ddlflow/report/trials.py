"""Plots of a search's course, from the rows of its table (ddlflow.sweep.choose.table)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ddlflow.report.plots import WORDS
from ddlflow.report.style import BLUE, GREY, RED, SKY, figure, shown

Better = Literal["higher", "lower"]
Status = Literal["done", "pruned", "failed"]


class DrawnTrial(Protocol):
    """What a plot needs of a trial: of a ``TrialRow`` (ddlflow.sweep.choose.table), which see.

    A protocol, since what draws stands below what searches and cannot import it.
    """

    @property
    def number(self) -> int: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def status(self) -> Status: ...

    @property
    def score(self) -> float | None: ...

    @property
    def ended_s(self) -> float | None: ...

    @property
    def curve(self) -> Sequence[tuple[int, float | None]]: ...


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial that was trained to its end, and the score that it has."""

    row: DrawnTrial
    score: float


Rows = Sequence[DrawnTrial]
FAR = 3.0  # a score so many times as far from the best as the median is drawn at the edge

BLACK = "#222222"
# Of a kind of trial, what matplotlib is told by keyword.
LOOKS: dict[Status, dict[str, Any]] = {
    "pruned": {"facecolors": "none", "edgecolors": GREY, "label": "pruned, at its last score"},
    "done": {"facecolors": SKY, "edgecolors": BLUE, "linewidths": 0.8, "label": "trial"},
    "failed": {"marker": "x", "color": BLACK, "linewidths": 1.4, "label": "failed"},
}
_END = {"markevery": [-1], "markersize": 4.5, "linewidth": 1.2, "zorder": 2}
LINES: dict[Status, dict[str, Any]] = {
    "pruned": {"color": GREY, "alpha": 0.5, "marker": "o", "markerfacecolor": "none", **_END},
    "done": {"color": BLUE, "alpha": 0.35, "linewidth": 1.2, "zorder": 2},
    "failed": {"color": BLACK, "alpha": 0.7, "marker": "x", **_END},
}


def done(rows: Rows) -> list[FinishedTrial]:
    """The trials that were trained to their end and have a score."""
    return [
        FinishedTrial(row, row.score)
        for row in rows
        if row.status == "done" and row.score is not None
    ]


def worst_first(rows: Rows, better: Better) -> list[FinishedTrial]:
    """The same in the order in which they are drawn: the best comes last, on top."""
    return sorted(done(rows), key=lambda trial: trial.score, reverse=better == "lower")


def best_of(rows: Rows, better: Better) -> FinishedTrial | None:
    """The best of these; of equal scores, the lower number."""
    sign = -1 if better == "higher" else 1
    return min(done(rows), key=lambda one: (sign * one.score, one.row.number), default=None)


def spread_of(scores: Sequence[float], better: Better) -> tuple[float, float]:
    """The range that a plot shows: far worse scores than most would make the rest one line."""
    if not scores:
        return 0.0, 1.0
    ordered = sorted(scores, reverse=better == "higher")
    best, median = ordered[0], ordered[len(ordered) // 2]
    far = best + FAR * (median - best)
    worst = max(ordered[-1], far) if better == "higher" else min(ordered[-1], far)
    if abs(worst - best) <= 1e-6 * max(abs(best), 1e-3):  # all are alike
        half = 0.5 * (abs(best) if abs(best) > 1e-6 else 1.0)
        return best - half, best + half
    return min(worst, best), max(worst, best)


def draw_progress(rows: Rows, metric: str, better: Better) -> Figure:
    """Every trial's score by its number, with the best so far; beside it by time, if known."""
    ended = [(row.ended_s, row) for row in rows if row.ended_s is not None]
    timed = bool(rows) and len(ended) == len(rows)
    drawn = figure(11.5 if timed else 7.2, 4.6)
    panels = drawn.subplots(1, 2 if timed else 1, squeeze=False, sharey=True)[0]
    _draw_scores(panels[0], rows, [row.number for row in rows], better)
    panels[0].set(xlabel="trial", ylabel=WORDS.get(metric, metric))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if timed:
        by_time = sorted(ended, key=lambda one: (one[0], one[1].number))
        seconds = [ended_s for ended_s, _ in by_time]
        unit, scale = ("minutes", 60.0) if seconds[-1] > 600 else ("seconds", 1.0)
        _draw_scores(panels[1], [row for _, row in by_time], [s / scale for s in seconds], better)
        panels[1].set(xlabel=f"{unit} since the start")
        panels[1].set_xlim(left=0)
    handles, names = panels[0].get_legend_handles_labels()
    if handles:
        drawn.legend(handles, names, loc="outside lower center", ncols=len(names))
    return drawn


def _draw_scores(axes: Axes, rows: Rows, places: Sequence[float], better: Better) -> None:
    """Points of trials in the order given, and a step line of the best so far."""
    scored = [
        (x, row.score, row.status)
        for x, row in zip(places, rows, strict=True)
        if row.score is not None
    ]
    low, high = spread_of([score for _, score, _ in scored], better)
    margin = 0.06 * (high - low)
    edge = low - margin if better == "higher" else high + margin  # for what is worse than shown
    axes.set_ylim(min(low - margin, edge - margin), max(high + margin, edge + margin))
    kinds = {status: [(x, score) for x, score, how in scored if how == status] for status in LOOKS}
    kinds["failed"] = [(x, edge) for x, r in zip(places, rows, strict=True) if r.status == "failed"]
    for status, points in kinds.items():
        if points:
            inside = [(x, min(max(score, low - margin), high + margin)) for x, score in points]
            x, y = zip(*inside, strict=True)
            axes.scatter(x, y, s=30, zorder=3, **LOOKS[status])
    finished = kinds["done"]
    if finished:
        choose = max if better == "higher" else min
        so_far = [choose(s for _, s in finished[: k + 1]) for k in range(len(finished))]
        ends = [*(x for x, _ in finished), max(places)]
        name = f"best so far: {shown(so_far[-1])}"
        axes.step(ends, [*so_far, so_far[-1]], where="post", color=RED, label=name, zorder=4)
    beyond = sum(not low <= score <= high for _, score, _ in scored)
    if beyond:
        text = f"{beyond} at the edge {'is' if beyond == 1 else 'are'} worse"
        axes.set_title(text, fontsize=9.5, color=GREY, loc="right")


def draw_curves(rows: Rows, metric: str, better: Better) -> Figure:
    """Every trial's score after each epoch: the best on top, a mark where others were ended."""
    drawn = figure(7.6, 4.8)
    axes = drawn.subplots()
    winner = best_of(rows, better)
    longest = 1
    scores_shown: list[float] = []
    labels = {status: str(look["label"]).partition(",")[0] for status, look in LOOKS.items()}
    for row in rows:
        points = [(e, s) for e, s in row.curve if s is not None and math.isfinite(s)]
        if not points:
            continue
        epochs, scores = zip(*points, strict=True)
        longest = max(longest, *epochs)
        scores_shown += scores
        if winner is not None and row is winner.row:
            axes.plot(epochs, scores, color="white", linewidth=5, zorder=3)
            name = f"best: trial {row.number}, {shown(winner.score)}"
            axes.plot(epochs, scores, color=RED, linewidth=2.4, label=name, zorder=4)
        else:
            axes.plot(epochs, scores, label=labels.pop(row.status, None), **LINES[row.status])
    if better == "lower" and scores_shown and min(scores_shown) > 0:
        if max(scores_shown) > 50 * min(scores_shown):
            axes.set_yscale("log")
    elif scores_shown:
        low, high = spread_of(scores_shown, better)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set(xlabel="epoch", ylabel=WORDS.get(metric, metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(1 - 0.02 * longest, longest + 0.02 * longest)
    if axes.lines:
        axes.legend(loc="best")
    return drawn
