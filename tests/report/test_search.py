"""A search's plots, drawn from tables of made trials and looked at through their axes."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from ddlflow.report.scales import cell, scale_of, two_lines, varied
from ddlflow.report.search import write_search
from ddlflow.report.settings import draw_importance, draw_pair, draw_parallel
from ddlflow.report.style import RED, style
from ddlflow.report.trials import (
    best_of,
    draw_curves,
    draw_progress,
    spread_of,
)
from ddlflow.spec.pipeline import SearchRange
from ddlflow.sweep.choose import table as trials_table
from ddlflow.sweep.choose.space import points
from ddlflow.sweep.choose.table import Outcome, TrialRow

GRID = {"train.optimizer.lr": [0.1, 0.01, 0.001], "model.hidden": [[50], [100, 100]], "a": [1]}
MIXED = {
    "model.use": ["linear", "mlp"],
    "model.dropout": {"uniform": [0, 0.5], "when": {"model.use": "mlp"}},
    "train.optimizer.lr": {"log_uniform": [1e-5, 0.1]},
    "train.batch_rows": {"int": [128, 4096], "log": True},
}


def ranges(space: dict[str, Any]) -> dict[str, SearchRange]:
    return {name: SearchRange.model_validate(one) for name, one in space.items()}


def rows(outcomes: list[Outcome]) -> list[TrialRow]:
    """A search's table as the report is given it."""
    return trials_table.rows(outcomes)


def grid_rows() -> list[TrialRow]:
    """Six trials scored 0.5, 0.6, ...: the last is the best."""
    return rows(
        Outcome(
            k, point, "done", (0.5 + k / 10,), 1.0, 3, None, k + 1.0, ((1, 0.4), (3, 0.5 + k / 10))
        )
        for k, point in enumerate(points(ranges(GRID)))
    )


def mixed_rows() -> list[TrialRow]:
    """Forty trials, some of them pruned and failed."""
    generator, made = np.random.default_rng(0), []
    for k in range(40):
        values: dict[str, Any] = {"model.use": ["linear", "mlp"][k % 2]}
        if k % 2:
            values["model.dropout"] = float(generator.uniform(0, 0.5))
        values["train.optimizer.lr"] = float(10 ** generator.uniform(-5, -1))
        values["train.batch_rows"] = int(2 ** generator.uniform(7, 12))
        status = "failed" if k % 7 == 3 else "pruned" if k % 3 == 0 else "done"
        score = float(generator.uniform(0.7, 0.9))
        curve = tuple((e, score - 0.1 / e) for e in range(1, 3 if status != "done" else 6))
        scores = () if status == "failed" else (score,)
        made.append(Outcome(k, values, status, scores, 1.0, len(curve), None, None, curve))  # type: ignore[arg-type]
    return rows(made)


def drawn(figure: Figure) -> Figure:
    with style():
        figure.draw_without_rendering()
    return figure


# ---- where values lie -----------------------------------------------------------------------


def test_listed_numbers_rise_and_other_values_keep_their_order() -> None:
    rising = scale_of("lr", SearchRange(values=[0.1, 0.001, 0.01]))
    assert [rising.at({"lr": v}) for v in (0.001, 0.01, 0.1)] == pytest.approx(
        [1 / 6, 3 / 6, 5 / 6]
    )
    assert [text for _, text in rising.ticks] == ["0.001", "0.01", "0.1"]
    kept = scale_of("use", SearchRange(values=["b", "a"]))
    assert [kept.at({"use": v}) for v in ("b", "a")] == [0.25, 0.75]
    assert kept.at({}) is None


@given(st.floats(1e-9, 1e3), st.floats(1.01, 1e9), st.booleans())
def test_numbers_fill_a_line_and_their_ticks_lie_on_it(low: float, times: float, log: bool) -> None:
    high = low * times
    kind = "log_uniform" if log else "uniform"
    scale = scale_of("x", SearchRange.model_validate({kind: [low, high]}))
    places = [scale.at({"x": low}), scale.at({"x": high})]
    assert places == pytest.approx([0.04, 0.96])
    assert all(0.04 - 1e-6 <= at <= 0.96 + 1e-6 for at, _ in scale.ticks)
    assert scale.ticks
    assert [at for at, _ in scale.ticks] == sorted({at for at, _ in scale.ticks})


def test_ticks_a_person_would_write() -> None:
    def texts(given: Any) -> list[str]:
        return [text for _, text in scale_of("x", SearchRange.model_validate(given)).ticks]

    assert texts({"log_uniform": [1e-5, 0.1]}) == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert texts({"int": [128, 4096], "log": True}) == ["200", "500", "1,000", "2,000"]
    assert texts({"int": [1, 4]}) == ["1", "2", "3", "4"]
    assert texts({"uniform": [0, 0.5]}) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert len(texts(list(range(100)))) <= 12


def test_cells() -> None:
    given = [0.00123456, "mlp", [200, 100], True, None, 7, {"use": "sgd"}, "x" * 99]
    assert [cell(value, 20) for value in given] == [
        "0.001235",
        "mlp",
        "[200, 100]",
        "true",
        "null",
        "7",
        '{"use": "sgd"}',
        "x" * 19 + "…",
    ]
    assert two_lines("train.optimizer.lr") == "train.optimizer.\nlr"
    assert two_lines("lr") == "lr"


def test_a_setting_of_one_value_has_no_axis() -> None:
    assert [scale.name for scale in varied(ranges(GRID))] == ["train.optimizer.lr", "model.hidden"]


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.sampled_from(["higher", "lower"]))
def test_the_best_is_always_in_the_range_that_is_shown(scores: list[float], better: Any) -> None:
    low, high = spread_of(scores, better)
    assert low < high
    if scores:
        best = max(scores) if better == "higher" else min(scores)
        assert low <= best <= high


def test_a_far_worse_score_does_not_press_the_others_together() -> None:
    assert spread_of([0.9, 0.8, 0.7, -1e6], "higher") == pytest.approx((0.3, 0.9))
    assert spread_of([1, 2, 3, 1e9], "lower") == pytest.approx((1, 7))


# ---- the plots ------------------------------------------------------------------------------


def test_all_plots_of_a_search(tmp_path: Path) -> None:
    files = write_search(
        tmp_path / "new" / "plots",
        rows=grid_rows(),
        space=ranges(GRID),
        metric="auroc",
        better="higher",
        importances={"train.optimizer.lr": 0.8, "model.hidden": 0.2},
        title="higgs-search",
    )
    assert [file.stem for file in files] == [
        "progress",
        "learning_curves",
        "parallel_coordinates",
        "settings",
        "importance",
    ]
    for file in files:
        assert np.ptp(imread(file)[..., :3]) > 0.5  # something is drawn


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    once, again = (
        write_search(
            tmp_path / name,
            rows=mixed_rows(),
            space=ranges(MIXED),
            metric="accuracy",
            better="higher",
            importances={},
            title="a search",
        )
        for name in "ab"
    )
    assert len(once) == 4
    assert [a.read_bytes() for a in once] == [b.read_bytes() for b in again]


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [Outcome(0, {"a": 1}, "failed", reason="nan")],
        [Outcome(0, {"a": 1}, "done", (0.5,), curve=((1, 0.5),))],
        [Outcome(0, {"a": 1}, "done", (0.0,)), Outcome(1, {"a": 2}, "done", (0.0,))],
        [Outcome(0, {"a": 1}, "done", (math.nan,), curve=((1, math.nan),))],
        [Outcome(0, {"a": 1}, "pruned", (0.5,), curve=((1, 0.5),))],
    ],
)
def test_a_search_with_little_to_show(tmp_path: Path, better: Any, outcomes: list[Outcome]) -> None:
    files = write_search(
        tmp_path,
        rows=rows(outcomes),
        space=ranges({"a": [1, 2], "b": {"values": [3, 4], "when": {"a": 2}}}),
        metric="loss",
        better=better,
        importances={},
        title="a search",
    )
    assert files[0].stem == "progress"


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_parallel_lines_go_through_the_settings(better: Any) -> None:
    table, scales = grid_rows(), varied(ranges(GRID))
    axes = draw_parallel(table, scales, "auroc", better).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    (best,) = [line for line in lines if to_hex(line.get_color()).upper() == RED]
    winner = best_of(table, better)
    assert winner is not None
    for x, scale in enumerate(scales):  # around the listed value: lines of one value fan out
        place = scale.at(winner.row.values)
        assert place is not None
        assert abs(best.get_ydata()[x] - place) < 0.5 / len(scale.listed or ())
    assert best.get_ydata()[2] == (1 if better == "higher" else 0)
    assert len(lines) == len(table) + 1  # and the white rim of the best
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "train.optimizer.\nlr",
        "model.\nhidden",
        "AUROC",
    ]


def test_what_was_not_set_lies_below_its_axis_and_pruned_trials_are_grey() -> None:
    table, scales = mixed_rows(), varied(ranges(MIXED))
    figure = draw_parallel(table, scales, "accuracy", "higher")
    axes = figure.axes[0]
    counts = {s: sum(row.status == s for row in table) for s in ("done", "pruned", "failed")}
    title = axes.get_title(loc="left")
    assert title == f"grey: {counts['pruned']} pruned; not shown: {counts['failed']} failed"
    short = [line for line in axes.lines if len(line.get_xdata()) == len(scales)]
    assert len(short) == counts["pruned"]
    dropout = {float(line.get_ydata()[1]) < 0 for line in short}
    assert dropout == {True, False}
    assert "not set" in [text.get_text() for text in axes.texts]


def test_names_of_many_settings_do_not_overlap() -> None:
    space = {f"train.optimizer.a_long_name_{k}": [10.0**k, 2 * 10.0**k] for k in range(8)}
    table = rows(
        Outcome(k, {name: one[k % 2] for name, one in space.items()}, "done", (k / 9,))
        for k in range(4)
    )
    figure = drawn(draw_parallel(table, varied(ranges(space)), "auroc", "higher"))
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_grid_is_a_field_of_cells(better: Any) -> None:
    table, (across, up) = grid_rows(), varied(ranges(GRID))
    del table[2]  # lr 0.01, [50]
    axes = draw_pair(table, across, up, "auroc", better, others=False).axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(numbers) == 5
    for row in table:
        place = (across.at(row.values), up.at(row.values))
        assert numbers[place] == f"{row.score:.4f}"
    (outline,) = axes.lines  # around the best cell
    winner = best_of(table, better)
    assert winner is not None
    assert min(outline.get_xdata()) < across.at(winner.row.values) < max(outline.get_xdata())
    assert min(outline.get_ydata()) < up.at(winner.row.values) < max(outline.get_ydata())


@pytest.mark.parametrize(("better", "expected"), [("higher", "0.9000"), ("lower", "0.2000")])
def test_a_cell_shows_its_best_trial(better: Any, expected: str) -> None:
    table = rows(
        Outcome(k, {"a": 1, "b": 2, "c": k}, "done", (score,))
        for k, score in enumerate([0.5, 0.9, 0.2])
    )
    scales = [scale_of(name, SearchRange(values=[1, 2])) for name in "ab"]
    figure = draw_pair(table, *scales, "auroc", better, others=True)
    assert [text.get_text() for text in figure.axes[0].texts] == [expected]
    assert figure.axes[1].get_ylabel() == "AUROC (a cell: its best trial)"


def test_ranges_are_points_and_the_settings_that_matter_are_chosen(tmp_path: Path) -> None:
    table = mixed_rows()
    scales = {scale.name: scale for scale in varied(ranges(MIXED))}
    lr, batch = scales["train.optimizer.lr"], scales["train.batch_rows"]
    axes = draw_pair(table, lr, batch, "accuracy", "higher", others=True).axes[0]
    found = {tuple(np.round(c.get_offsets()[0], 9)) for c in axes.collections[: len(table)]}
    seen = [row for row in table if row.status != "failed"]
    assert found == {
        (round(lr.at(row.values) or 0, 9), round(batch.at(row.values) or 0, 9)) for row in seen
    }
    assert [text.get_text() for text in axes.get_xticklabels()] == [t for _, t in lr.ticks]


def test_importance_is_falling_bars() -> None:
    axes = draw_importance({"train.optimizer.lr": 0.75, "model.hidden": 0.25}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [75, 25]
    assert [text.get_text() for text in axes.texts] == ["75 %", "25 %"]
    assert axes.patches[0].get_y() > axes.patches[1].get_y()


def labels(figure: Figure) -> list[str]:
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(("better", "best"), [("higher", "1"), ("lower", "0.5")])
def test_progress_has_every_trial_and_the_best_so_far(better: Any, best: str) -> None:
    figure = draw_progress(grid_rows(), "auroc", better)
    by_number, by_time = figure.axes
    assert labels(figure) == ["trial", f"best so far: {best}"]
    assert by_number.collections[0].get_offsets()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert by_time.collections[0].get_offsets()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    (line,) = by_number.lines
    so_far = list(line.get_ydata())
    assert so_far == sorted(so_far, reverse=better == "lower")
    assert so_far[-1] == float(best)


def test_progress_without_times_has_one_panel_and_marks_what_ended() -> None:
    table = mixed_rows()
    figure = draw_progress(table, "accuracy", "higher")
    assert len(figure.axes) == 1
    assert labels(figure)[:3] == ["pruned, at its last score", "trial", "failed"]
    sizes = [len(kind.get_offsets()) for kind in figure.axes[0].collections]
    assert sizes == [sum(row.status == s for row in table) for s in ("pruned", "done", "failed")]


def test_what_is_far_worse_lies_at_the_edge_and_is_counted() -> None:
    table = grid_rows()
    table[0] = replace(table[0], score=-50.0)
    axes = draw_progress(table, "auroc", "higher").axes[0]
    assert axes.get_title(loc="right") == "1 at the edge is worse"
    low, high = axes.get_ylim()
    assert (low, high) == pytest.approx((0.1 - 2 * 0.054, 1.054), abs=0.2)
    assert all(low <= y <= high for y in axes.collections[0].get_offsets()[:, 1])


def test_curves_end_where_their_trials_did() -> None:
    table = mixed_rows()
    figure = draw_curves(table, "accuracy", "higher")
    axes = figure.axes[0]
    winner = best_of(table, "higher")
    assert winner is not None
    assert set(labels(figure)) == {
        "trial",
        "pruned",
        "failed",
        f"best: trial {winner.row.number}, {winner.score:.4g}",
    }
    lengths = sorted(len(line.get_xdata()) for line in axes.lines)
    assert lengths == sorted([*(len(row.curve) for row in table), len(winner.row.curve)])


def test_losses_over_orders_of_magnitude_are_on_a_log_axis() -> None:
    table = rows(
        Outcome(k, {"a": k}, "done", (10.0**-k,), curve=((1, 1.0), (2, 10.0**-k))) for k in range(4)
    )
    assert draw_curves(table, "loss", "lower").axes[0].get_yscale() == "log"
    assert draw_curves(grid_rows(), "auroc", "higher").axes[0].get_yscale() == "linear"
