"""The picture of several runs' metrics, drawn as it is and looked at through its axes."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from ddlflow.report import curves
from ddlflow.report.curves import write_lines
from ddlflow.report.style import CLASS_COLOURS


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved; they are saved all the same."""
    seen: list[Figure] = []
    save = curves.save

    def keep(figure: Figure, path: Path) -> Path:
        seen.append(figure)
        return save(figure, path)

    monkeypatch.setattr(curves, "save", keep)
    return seen


def points(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, 1))


def colours(figure: Figure) -> list[dict[Any, str]]:
    """By panel: each line's first value and its colour."""
    return [
        {line.get_ydata()[0]: to_hex(line.get_color()).upper() for line in panel.lines}
        for panel in figure.axes
    ]


def test_a_panel_a_metric_a_line_a_run(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = {
        "loss": [("one", points(3, 2, 1)), ("two", points(4, 3))],
        "val_loss": [("two", points(5, 4))],  # `one` had no validation rows
        "val_auroc": [("one", points(0.5)), ("two", points(0.6))],
        "val_accuracy": [("one", points(0.7)), ("two", points(float("nan"), 0.8))],
    }
    path = write_lines(tmp_path / "lines.png", metrics)
    assert imread(path).shape[2] == 4
    (figure,) = drawn
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_ylabel() for panel in panels] == list(metrics)
    assert {panel.get_xlabel() for panel in panels} == {"epoch"}
    assert list(panels[0].lines[0].get_xdata()) == [1, 2, 3]
    assert list(panels[0].lines[0].get_ydata()) == [3, 2, 1]
    one, two = CLASS_COLOURS[:2]
    assert colours(figure)[:3] == [{3: one, 4: two}, {5: two}, {0.5: one, 0.6: two}]
    assert [text.get_text() for text in figure.legends[0].texts] == ["one", "two"]
    epochs = [tick for tick in panels[2].get_xticks() if tick in range(3)]
    assert 1 in epochs


def test_more_runs_than_colours_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [(f"run {k}", points(k, k + 1)) for k in range(len(CLASS_COLOURS) + 2)]
    write_lines(tmp_path / "lines.png", {"loss": runs})
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines}
    assert len(looks) == len(runs)


def test_long_names_stay_inside_the_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [(f"quickstart 2026-11-20 15:{k} (0123abc{k})", points(k, 1)) for k in range(3)]
    for number, metrics in enumerate(({"loss": runs}, {"loss": runs, "val_loss": runs})):
        write_lines(tmp_path / f"{number}.png", metrics)
        figure = drawn[-1]
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.width
        assert legend.y1 <= figure.bbox.height


def test_the_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    metrics = {"loss": [("one", points(3, 2, 1))]}
    written = [write_lines(tmp_path / name, metrics).read_bytes() for name in ("a.png", "b.png")]
    assert written[0] == written[1]
