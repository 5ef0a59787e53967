"""Scores of rows with weights, held against scikit-learn's ``sample_weight``."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as exact
import torch

from ddlflow.train.tasks.scores import PackedScores
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget
from ddlflow.train.tasks.weights import UNIT, Weighting

ROWS, PIECE = 90_000, 1_777
KINDS = ("binary", "multiclass", "regression")


def rows_of(kind: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Outputs, labels, and weights from 0 to some hundred times their mean, most of them small."""
    random = np.random.default_rng(4)
    weights = random.lognormal(0, 2, ROWS) * (random.random(ROWS) < 0.9)
    weights /= weights.mean()
    if kind == "binary":
        labels = (random.random(ROWS) < 0.2).astype(np.float32)
        outputs = random.standard_normal(ROWS) * 2 + labels - 1
    elif kind == "multiclass":
        labels = random.choice(4, ROWS, p=[0.6, 0.3, 0.09, 0.01])
        outputs = random.standard_normal((ROWS, 4)) + 2 * np.eye(4)[labels]
    else:
        labels = (random.standard_normal(ROWS) * 3 + 100).astype(np.float32)
        outputs = labels + random.standard_normal(ROWS)
    return torch.tensor(outputs, dtype=torch.float32), torch.tensor(labels), weights


def empty(kind: Any, *, weighted: bool) -> Any:
    rows = Weighting(has_column=weighted)
    label = LabelTarget(num_classes=4, extent=(80.0, 120.0), weighting=rows)
    return task_for(kind, label=label).empty_scores()


def scored(kind: Any, outputs: Any, labels: Any, weights: np.ndarray, piece: int = PIECE) -> Any:
    """Packed in pieces and merged, as workers do it."""
    total = empty(kind, weighted=True)
    parts = torch.tensor(weights * UNIT).round().long()
    for start in range(0, len(labels), piece):
        here = slice(start, start + piece)
        own = empty(kind, weighted=True)
        loss = float((torch.tensor(weights[here])).sum()) * 3
        own.update(outputs[here], labels[here], loss, parts[here], weights[here].sum())
        total.merge_packed(PackedScores(**json.loads(json.dumps(asdict(own.packed())))))
    return total


def by_scikit_learn(kind: str, outputs: Any, labels: Any, weights: np.ndarray) -> dict[str, float]:
    true, given = labels.numpy(), outputs.double()
    how = {"sample_weight": weights}
    if kind == "regression":
        return {
            "mse": exact.mean_squared_error(true, given, **how),
            "rmse": exact.root_mean_squared_error(true, given, **how),
            "mae": exact.mean_absolute_error(true, given, **how),
            "r2": exact.r2_score(true, given, **how),
        }
    if kind == "multiclass":
        chosen = given.argmax(1)
        return {
            "accuracy": exact.accuracy_score(true, chosen, **how),
            "f1_macro": exact.f1_score(true, chosen, average="macro", **how),
            "log_loss": exact.log_loss(true, given.softmax(1), **how),
        }
    probability = given.sigmoid().numpy()
    return {
        "auroc": exact.roc_auc_score(true, given, **how),
        "average_precision": exact.average_precision_score(true, given, **how),
        "accuracy": exact.accuracy_score(true, probability >= 0.5, **how),
        "f1": exact.f1_score(true, probability >= 0.5, **how),
        "log_loss": exact.log_loss(true, probability, **how),
        "brier": exact.brier_score_loss(true, probability, **how),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_scikit_learns_with_sample_weight(kind: str) -> None:
    rows = rows_of(kind)
    scores = scored(kind, *rows)
    found = scores.compute()
    for name, value in by_scikit_learn(kind, *rows).items():
        # The logit's bins move what depends on its order (see binary_scores.py): by more than
        # without weights, as a few heavy rows decide.
        within = 5e-4 if name in {"auroc", "average_precision"} else 1e-6
        assert found[name] == pytest.approx(value, rel=2 * within), name
    assert found["loss"] == pytest.approx(3)
    assert found["rows"] == ROWS
    json.dumps(asdict(scores.curves()), allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_the_same_in_any_pieces_and_order(kind: str) -> None:
    outputs, labels, weights = rows_of(kind)
    one = scored(kind, outputs, labels, weights, piece=ROWS)
    other = scored(kind, outputs.flip(0), labels.flip(0), weights[::-1].copy(), piece=999)
    assert torch.equal(one.counts, other.counts)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_change_no_metric(kind: str) -> None:
    outputs, labels, _ = rows_of(kind)
    plain = empty(kind, weighted=False)
    plain.update(outputs, labels, 3.0 * ROWS)
    weighted = scored(kind, outputs, labels, np.ones(ROWS)).compute()
    assert weighted == pytest.approx(plain.compute(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_no_weight_that_cannot_be_scored_is_told_of(kind: str) -> None:
    outputs, labels, weights = rows_of(kind)
    weights[7] = 0
    outputs[7] = float("nan")
    found = scored(kind, outputs, labels, weights).compute()
    assert found["unscored_rows"] == 1
    assert np.isnan(found["mse" if kind == "regression" else "accuracy"])
