"""The files of an evaluate stage: what is read is what was written, of every kind of label."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddlflow.data.coefficient_table import CoefficientTable, Term
from ddlflow.data.scored import BinaryCurves, FeatureCounts, Scored
from ddlflow.errors import DdlflowError
from ddlflow.runs.evaluated import (
    COEFFICIENTS,
    SCORES,
    coefficients_of,
    save_coefficients,
    save_scores,
    scores_of,
)
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import EvaluateResult
from ddlflow.spec.pipeline import ObjectiveName
from ddlflow.store.store import open_store
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget

HISTOGRAM = FeatureCounts("a", [0.0, 0.5, 1.0], [[3, 4]], [0], [1], [2])


def stage_in(folder: Path) -> Stage[EvaluateResult]:
    result = EvaluateResult("test", {}, {}, None, ())
    return Stage("evaluate", "k", str(folder), 0.0, cached=True, value=result)


def scored(kind: ObjectiveName, label: list[float]) -> Scored:
    scores = task_for(kind, label=LabelTarget(num_classes=2)).empty_scores()
    labels = torch.tensor(label, dtype=torch.int64 if kind == "multiclass" else torch.float32)
    outputs = torch.linspace(-1, 1, 2 * len(label)).reshape(-1, 2)
    scores.update(outputs if kind == "multiclass" else outputs[:, 0], labels, 1.0)
    return Scored(
        scores.compute(), {"loss": 0.5}, scores.predicted_classes(), scores.curves(), None
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_scores_come_back(kind: ObjectiveName, tmp_path: Path) -> None:
    made = replace(scored(kind, [0.0, 1.0, 1.0, 0.0]), histogram=HISTOGRAM)
    save_scores(open_store(tmp_path), made)
    assert scores_of(stage_in(tmp_path)) == made


def test_a_curve_that_is_not_defined_is_null_and_its_bound_is_not_there(tmp_path: Path) -> None:
    made = scored("binary", [1.0, 1.0])
    save_scores(open_store(tmp_path), made)
    curves = json.loads((tmp_path / SCORES).read_text())["curves"]
    assert list(curves) == ["roc", "precision_recall", "scores", "reliability", "confusion"]
    again = scores_of(stage_in(tmp_path))
    assert isinstance(again.curves, BinaryCurves)
    assert again.curves == made.curves
    assert math.isnan(again.metrics["auroc"])
    assert again.curves.auroc_within is None


def test_coefficients_come_back(tmp_path: Path) -> None:
    assert coefficients_of(stage_in(tmp_path)) is None
    term = Term("a", "top", 0.5, None, 0.0, math.inf, 0.0)
    made = CoefficientTable([term], {"town": "Bonn"}, "low", None, 9)
    save_coefficients(open_store(tmp_path), made)
    assert coefficients_of(stage_in(tmp_path)) == made


@pytest.mark.parametrize(("name", "read"), [(SCORES, scores_of), (COEFFICIENTS, coefficients_of)])
def test_a_file_of_another_version_is_one_line(name: str, read: object, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"terms": 5}')
    assert callable(read)
    with pytest.raises(DdlflowError, match=f"{name} was written by another version") as caught:
        read(stage_in(tmp_path))
    assert "\n" not in str(caught.value)
