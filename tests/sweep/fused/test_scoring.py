"""The validation metrics of stacked models, where the rows are read in many pieces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from ddlflow.data.shards.rows import Rows
from ddlflow.data.shards.shard import map_shard
from ddlflow.sweep.member import Member, Result, first_net
from ddlflow.train.tasks.measures import measures_of

MODULE = "own_of_test_scoring"
CODE = '''
import torch
from torch import nn


def half_squared(outputs, labels):
    return 0.5 * (outputs - labels) ** 2


def absolute_of_sigmoid(outputs, labels):
    return (torch.sigmoid(outputs) - labels).abs().sum()


def softened(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1, reduction="sum")


class InPlace(nn.Module):
    """Cuts its inputs where they are, below or above 0 as its argument says."""

    def __init__(self, num_features, above=True):
        super().__init__()
        self.above = above
        self.last = nn.Linear(num_features, 1)

    def forward(self, features):
        bounds = {"min": 0.0} if self.above else {"max": 0.0}
        return self.last(features.clamp_(**bounds)).squeeze(1)
'''
OWN = {
    "binary": "absolute_of_sigmoid",
    "multiclass": "softened",
    "regression": "half_squared",
}


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold's held-out rows, some 290, take five pieces."""
    for module in ("ddlflow.sweep.fused.streams", "ddlflow.train.validation"):
        monkeypatch.setattr(f"{module}.PIECE_ROWS", 64)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    return tmp_path


def expected(member: Member, result: Result, prepared: Any) -> dict[str, float]:
    """What scikit-learn and torch say of a trained member over its held-out rows, at once."""
    assert result.tensors is not None
    fold = prepared.folds[member.fold]
    rows = Rows(fold.validation, fold.standardisation)
    columns = rows.empty(rows.rows)
    rows.read(0, rows.rows, columns, 0)
    net = first_net(member.model, member.train, prepared).eval()
    net.load_state_dict(result.tensors)
    labels = columns.pop("label")
    with torch.no_grad():
        outputs = net(*(torch.from_numpy(array) for array in columns.values()))
    kind = member.train.objective
    if kind == "regression":
        parts = [map_shard(one) for one in fold.train.locate(fold.train.shards)]
        learned = np.concatenate([part["label"] for part in parts]).astype(float)
        found = learned.mean() + learned.std() * outputs.double().numpy()
        mse = sk.mean_squared_error(labels, found)
        mae, r2 = sk.mean_absolute_error(labels, found), sk.r2_score(labels, found)
        return {"loss": mse, "mse": mse, "rmse": mse**0.5, "mae": mae, "r2": r2}
    if kind == "multiclass":
        shares = torch.softmax(outputs.double(), 1).numpy()
        log_loss, index = sk.log_loss(labels, shares), shares.argmax(1)
        return {
            "loss": log_loss,
            "log_loss": log_loss,
            "accuracy": sk.accuracy_score(labels, index),
            "f1_macro": sk.f1_score(labels, index, average="macro"),
        }
    shares = torch.sigmoid(outputs.double()).numpy()
    log_loss = sk.log_loss(labels, shares)
    return {
        "loss": log_loss,
        "log_loss": log_loss,
        "brier": float(np.mean((shares - labels) ** 2)),
        "auroc": sk.roc_auc_score(labels, shares),
        "average_precision": sk.average_precision_score(labels, shares),
        "accuracy": sk.accuracy_score(labels, shares >= 0.5),
        "f1": sk.f1_score(labels, shares >= 0.5),
    }


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_every_metric_is_that_of_all_held_out_rows(ground: Callable[..., Any], labels: Any) -> None:
    place = ground(labels, "all")
    members = [place.member(f"{fold}", fold=fold, epochs=2, batch_rows=32) for fold in (0, 1)]
    fused, apart = place.fused(members), place.apart(members)
    for member in members:
        found = fused[member.id]
        assert set(found.metrics) == set(measures_of(labels).names)
        assert found.metrics == pytest.approx(apart[member.id].metrics, rel=1e-4)
        # Binary curves are of logits in bins: 4e-3 is what they promise.
        assert found.metrics == pytest.approx(expected(member, found, place.prepared), rel=4e-3)


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_so_is_the_loss_of_an_objective_of_the_users(
    ground: Callable[..., Any], code: Path, labels: Any
) -> None:
    place = ground(labels)
    place = replace(place, prepared=replace(place.prepared, code=code))
    objective = {"use": f"{MODULE}:{OWN[labels]}", "like": labels}
    members = [
        place.member(f"{fold}", fold=fold, objective=objective, batch_rows=32) for fold in (0, 1, 2)
    ]
    fused, apart = place.fused(members), place.apart(members)
    for member in members:
        wanted = apart[member.id].metrics
        assert fused[member.id].metrics == pytest.approx(wanted, rel=1e-4)


def test_a_model_that_changes_its_inputs_in_place_spoils_them_for_nobody(
    ground: Callable[..., Any], code: Path
) -> None:
    from ddlflow.sweep.fused.streams import Pool
    from ddlflow.sweep.run import Piece, start

    place = replace(ground(), prepared=replace(ground().prepared, code=code))
    members = [
        place.member(f"{above}", model={"use": f"{MODULE}:InPlace", "above": above}, fold=0)
        for above in (True, False)
    ]
    pool = Pool(place.prepared, {0})
    for member in members:  # two stacks that read one pool, as pieces of one worker do
        stack = start(Piece((member,), True, ""), place.prepared, pool=pool)
        stack.run_epoch()
        wanted = place.apart([member])[member.id].metrics
        assert stack.results[member.id].metrics == pytest.approx(wanted, rel=1e-4)
