"""The report of each kind, drawn from real scores of made rows."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from ddlflow.data.scored import RocCurve
from ddlflow.report import plots
from ddlflow.report.classification import (
    draw_calibration,
    draw_confusion,
    draw_feature,
    draw_roc,
    draw_scores,
)
from ddlflow.report.regression import draw_residuals
from ddlflow.train.tasks.histogram import FeatureHistogram, histogram_edges
from ddlflow.train.tasks.measures import measures_of
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget

HISTORY = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 1 / epoch,
        "val_loss": 1.2 / epoch,
        "val_auroc": 0.7,
    }
    for epoch in (1, 2, 3)
]


def scores_for(kind, num_classes=2):
    return task_for(kind, label=LabelTarget(num_classes=num_classes)).empty_scores()


def given(kind, num_classes=3, rows=400):
    """The arguments of write_report but the folder."""
    generator = torch.Generator().manual_seed(5)
    scores = scores_for(kind, num_classes)
    noise = torch.randn(rows, generator=generator)
    labels = torch.arange(rows) % (2 if kind == "binary" else num_classes)
    if kind == "multiclass":
        logits = torch.randn(rows, num_classes, generator=generator)
        scores.update(logits, labels, 1.0)
    elif kind == "binary":
        scores.update(noise + labels, labels.float(), 1.0)
    else:
        labels = torch.rand(rows, generator=generator)
        scores.update(labels + noise / 10, labels, 1.0)
    feature = FeatureHistogram(
        "m_bb", histogram_edges(-2, 2, 20), {"binary": 2, "multiclass": num_classes}.get(kind, 1)
    )
    feature.update(noise, labels)
    return {
        "history": HISTORY,
        "metric": measures_of(kind).drawn,
        "metrics": scores.compute(),
        "baseline": {"loss": 0.75, "r2": 0.0},
        "curves": scores.curves(),
        "classes": None if kind == "regression" else [f"c{i}" for i in range(num_classes)],
        "histogram": feature.curves(),
        "title": "a run",
    }


PLOTS = {
    "binary": ["roc", "precision_recall", "calibration", "scores", "confusion_matrix"],
    "multiclass": ["confusion_matrix"],
    "regression": ["residuals"],
}


@pytest.mark.parametrize("kind", PLOTS)
def test_report_has_its_files_and_names_them(kind, tmp_path):
    files = plots.write_report(tmp_path / "new" / "report", **given(kind))
    names = ["loss_curves", *PLOTS[kind], "feature_histogram"]
    expected = [*(f"{name}.png" for name in names), "metrics.json", "report.md"]
    assert [file.name for file in files] == expected
    text = files[-1].read_text(encoding="utf-8")
    assert text.startswith("# a run\n")
    assert all(f"({name}.png)" in text for name in names)
    for file in files[:-2]:
        pixels = imread(file)
        assert pixels.shape[0] > 400
        assert np.ptp(pixels[..., :3]) > 0.5  # something is drawn


def test_same_numbers_give_the_same_bytes(tmp_path):
    once, again = (plots.write_report(tmp_path / name, **given("binary")) for name in "ab")
    assert [a.read_bytes() for a in once] == [b.read_bytes() for b in again]


def test_nan_is_null_in_json_and_a_word_in_the_table(tmp_path):
    arguments = given("regression") | {"metrics": {"loss": 0.5, "r2": math.nan, "rows": 12345.0}}
    *_, numbers, text = plots.write_report(tmp_path, **arguments)
    assert json.loads(numbers.read_text()) == {"loss": 0.5, "r2": None, "rows": 12345.0}
    assert "| R² | undefined |" in text.read_text(encoding="utf-8")
    assert "| Rows | 12,345 |" in text.read_text(encoding="utf-8")


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_reported_without_its_undefined_curves(label, tmp_path):
    scores = scores_for("binary")
    scores.update(torch.linspace(-1, 1, 50), torch.full((50,), label), 0.0)
    arguments = given("binary") | {"metrics": scores.compute(), "curves": scores.curves()}
    names = {file.name for file in plots.write_report(tmp_path, **arguments)}
    assert "calibration.png" in names
    assert not names & {"roc.png", "precision_recall.png"}


@pytest.mark.parametrize("kind", PLOTS)
def test_no_rows_no_history_and_no_names_still_make_a_report(kind, tmp_path):
    scores = scores_for(kind, 3)
    arguments = given(kind) | {
        "history": [],
        "metrics": scores.compute(),
        "curves": scores.curves(),
        "classes": None,
        "histogram": None,
    }
    files = plots.write_report(tmp_path, **arguments)
    assert not {file.name for file in files} & {"loss_curves.png", "feature_histogram.png"}
    assert files[-1].exists()


def test_unscored_rows_are_told(tmp_path):
    scores = scores_for("binary")
    scores.update(torch.tensor([math.nan, 1.0, -1.0]), torch.tensor([1.0, 1.0, 0.0]), 0.0)
    arguments = given("binary") | {"metrics": scores.compute(), "curves": scores.curves()}
    text = plots.write_report(tmp_path, **arguments)[-1].read_text(encoding="utf-8")
    assert "| Rows whose output is not finite | 1 |" in text


def test_loss_curves_show_what_the_history_holds():
    drawn = plots.draw_loss(HISTORY, "auroc")
    assert len(drawn.axes) == 2
    train, validation = drawn.axes[0].lines[:2]
    assert list(train.get_ydata()) == [row["loss"] for row in HISTORY]
    assert list(validation.get_ydata()) == [row["val_loss"] for row in HISTORY]
    bare = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": math.nan}, {"epoch": 3, "loss": 0.5}]
    drawn = plots.draw_loss(bare, "auroc")
    assert len(drawn.axes) == 1
    assert list(drawn.axes[0].lines[0].get_xdata()) == [1, 3]


def test_falling_by_orders_of_magnitude_is_drawn_on_a_log_axis():
    history = [{"epoch": epoch, "loss": 10.0**-epoch} for epoch in range(1, 5)]
    assert plots.draw_loss(history, "r2").axes[0].get_yscale() == "log"
    assert plots.draw_loss(HISTORY, "r2").axes[0].get_yscale() == "linear"


def labels_of(drawn: Figure) -> str:
    return " ".join(text.get_text() for text in drawn.axes[0].get_legend().get_texts())


def test_roc_names_its_area():
    assert "AUROC = 0.8125" in labels_of(draw_roc(RocCurve([0, 1], [0, 1], [1, 0]), 0.8125))


def test_feature_tells_signal_from_background_and_what_is_beyond():
    histogram = FeatureHistogram("m_bb", histogram_edges(0, 1, 4), 2)
    histogram.update(torch.tensor([0.1, 0.2, 0.9, 5.0]), torch.tensor([0, 0, 1, 1]))
    drawn = draw_feature(histogram.curves(), ["background", "higgs"])
    assert labels_of(drawn) == "background (2) higgs (1)"
    assert drawn.axes[0].get_title(loc="right") == "not shown: 25 % above"
    background, signal = drawn.axes[0].patches[:2]
    assert signal.get_fill()
    assert not background.get_fill()
    for steps in (background, signal):
        density, edges, _ = steps.get_data()
        assert np.sum(density * np.diff(edges)) == pytest.approx(1)


def test_scores_are_named_by_their_classes_alone():
    drawn = draw_scores(given("binary")["curves"].scores, ["no", "yes"])
    assert labels_of(drawn) == "no (200) yes (200)"


def test_the_legend_of_the_calibration_is_beside_the_points():
    scores = scores_for("binary")
    logits = torch.linspace(-3, 3, 4000)
    scores.update(logits, (torch.arange(4000) % 10 < 10 * torch.sigmoid(4 * logits)).float(), 0.0)
    drawn = draw_calibration(scores.curves().reliability, ["no", "yes"])
    drawn.set_layout_engine("constrained")
    drawn.draw_without_rendering()
    (legend,) = drawn.legends
    assert legend.get_window_extent().y1 < drawn.axes[0].get_window_extent().y0
    assert drawn.axes[0].get_legend() is None


@pytest.mark.parametrize("rows", [80, 100_000])
def test_a_cell_of_one_row_is_seen_and_counts_are_plain_numbers(rows):
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(rows, generator=generator)
    scores = scores_for("regression")
    scores.update(labels + torch.randn(rows, generator=generator) / 5, labels, 1.0)
    drawn = draw_residuals(scores.curves(), "price")
    (mesh,) = drawn.axes[1].collections
    *colour, _ = mesh.to_rgba(1)
    assert min(colour) < 0.7
    drawn.draw_without_rendering()
    ticks = [tick.get_text() for tick in drawn.axes[2].get_yticklabels()]
    assert ticks[:2] == ["1", "2"]
    assert all(tick.isdigit() for tick in ticks)


@pytest.mark.parametrize("num_classes", [2, 10, 25, 40, 120])
def test_confusion_is_readable_for_few_and_many_classes(num_classes, tmp_path):
    names = [f"a class with a long name, {i}" for i in range(num_classes)]
    confusion = (np.eye(num_classes, dtype=int) * 7 + 1).tolist()
    drawn = draw_confusion(confusion, names)
    assert len(drawn.axes[0].texts) == (num_classes**2 if num_classes <= 25 else 0)
    assert len(drawn.axes[0].get_xticks()) <= 50
    assert all(len(tick.get_text()) <= 18 for tick in drawn.axes[0].get_xticklabels())
    drawn.draw_without_rendering()


def test_drawing_needs_no_pyplot():
    code = "import sys, ddlflow.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
