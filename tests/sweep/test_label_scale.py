"""Fused folds of a regression with a large mean: each fold's own scale, the label's units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.spec.pipeline import Cv, Data, Model, Split, Training
from ddlflow.sweep.fused.plan import plan_stacks
from ddlflow.sweep.held_out import write_predictions
from ddlflow.sweep.member import Member, Prepared, Result
from ddlflow.sweep.place import Where, prepared_at
from ddlflow.sweep.run import Piece, start
from ddlflow.train import training, validation
from ddlflow.train.job import Job

ROWS, FOLDS = 1800, 3
MEANS = {"prices": (300_000.0, 50_000.0), "far from 0": (1e9, 1.0)}
MLP = {"use": "mlp", "hidden": [8]}
WAVE = """
import torch

class Wave(torch.nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.first, self.last = torch.nn.Linear(num_features, 6), torch.nn.Linear(6, 1)

    def forward(self, features):
        return self.last(torch.sin(self.first(features))).squeeze(1)
"""


@pytest.fixture(params=MEANS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, pa.Table]:
    """A prepared data set whose folds are by a column, each with another mean of the label."""
    mean, deviation = MEANS[request.param]
    random = np.random.default_rng(8)
    x, fold = random.standard_normal((ROWS, 3)), random.integers(0, FOLDS, ROWS)
    near = x @ [1.0, -0.5, 0.2] + fold / 2 + 0.1 * random.standard_normal(ROWS)
    near = np.round(near * 2**20) / 2**20 * deviation
    columns = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "part": fold, "near": near}
    table = pa.table(columns | {"y": mean + near})
    for first in range(0, ROWS, 500):
        (tmp_path / "t").mkdir(exist_ok=True)
        pq.write_table(table.slice(first, 500), tmp_path / "t" / f"{first:04d}.parquet")
    code = tmp_path / "code"
    code.mkdir()
    (code / "nets.py").write_text(WAVE)
    spec = Data(
        source="t",
        label="y",
        features=["a", "b", "c"],
        exclude=["part"],
        split=Split(validation=0.1, test=0),
    )
    prepare(
        spec,
        "regression",
        data_root=tmp_path,
        folder=tmp_path / "dataset",
        map=lambda function, items, _: map(function, items),
        cv=Cv(kind="predefined", by="part"),
    )
    return tmp_path, table


def members(model: Any, **train: Any) -> list[Member]:
    values = {"objective": "regression", "epochs": 3, "batch_rows": 50, **train}
    values.setdefault("optimizer", {"use": "adam", "lr": 0.01})
    section: Any = TypeAdapter(Model).validate_python(model)
    penalties: list[dict[str, Any]] = [{}, {"penalty": {"l1": 20.0, "l2": 1e-3}}]
    return [
        Member(f"{k}/{fold}", section, Training(**values, **more), fold)
        for k, more in enumerate(penalties)
        for fold in (None, *range(FOLDS))
    ]


def made(root: Path, wanted: list[Member]) -> Prepared:
    return prepared_at(Where(str(root / "dataset"), str(root / "code"), "cpu", 1), wanted, 0)


def trained(piece: Piece, prepared: Prepared) -> dict[str, Result]:
    under_way = start(piece, prepared)
    while under_way.alive:
        under_way.run_epoch()
    return under_way.results


@pytest.mark.parametrize("model", [MLP, {"use": "linear"}, {"use": "nets:Wave"}])
def test_every_metric_fused_is_the_one_apart(
    place: tuple[Path, pa.Table],
    monkeypatch: pytest.MonkeyPatch,
    unlike: Callable[[Result, Result], float],
    model: Any,
) -> None:
    root, _ = place
    monkeypatch.setattr("ddlflow.sweep.fused.streams.PIECE_ROWS", 128)  # several pieces are scored
    monkeypatch.setattr(validation, "PIECE_ROWS", 128)
    wanted = members(model, early_stopping={"metric": "rmse", "patience": 1})
    prepared = made(root, wanted)
    (group,) = plan_stacks(wanted, prepared)
    assert group.apart is None
    fused = trained(Piece(group.members, True, ""), prepared)
    for member in wanted:
        (alone,) = trained(Piece((member,), False, ""), prepared).values()
        found = fused[member.id]
        assert found.status == alone.status == "done", found.reason
        assert unlike(found, alone) < 1e-4
        assert found.best_epoch == alone.best_epoch
        assert set(found.metrics) == {"loss", "mse", "rmse", "mae", "r2"}
        assert found.metrics == pytest.approx(alone.metrics, rel=1e-3, abs=1e-4)
        assert found.metrics["loss"] == pytest.approx(found.metrics["mse"], rel=1e-4)


def test_held_out_rows_have_the_labels_units(place: tuple[Path, pa.Table], tmp_path: Path) -> None:
    """Predictions and labels of the folds give scikit-learn the very metrics of the history."""
    root, table = place
    wanted = [member for member in members(MLP, epochs=20) if member.fold is not None][:FOLDS]
    prepared = made(root, wanted)
    fused = trained(Piece(tuple(wanted), True, ""), prepared)
    mean = float(np.round(table["y"].to_numpy().mean()))
    for member in wanted:
        result = fused[member.id]
        assert result.tensors is not None
        name = write_predictions(member, result.tensors, prepared, tmp_path)
        written = pq.read_table(tmp_path / name)
        label, found = (written[name].to_numpy() - mean for name in ("label", "prediction"))
        source = table["y"].to_numpy()[written["row"].to_numpy()] - mean
        np.testing.assert_allclose(label, source, rtol=1e-6, atol=0.02)
        assert result.metrics["mse"] == pytest.approx(mean_squared_error(label, found), rel=1e-3)
        assert result.metrics["mae"] == pytest.approx(mean_absolute_error(label, found), rel=1e-3)
        assert result.metrics["r2"] == pytest.approx(r2_score(label, found), abs=1e-3)
        assert result.metrics["r2"] > 0.5


def test_a_member_is_its_training(place: tuple[Path, pa.Table]) -> None:
    """Apart, a member without a fold has the bits of ``ddlflow.train``."""
    root, _ = place
    member = members(MLP)[4]
    prepared = made(root, [member])
    (result,) = trained(Piece((member,), False, ""), prepared).values()
    manifest = Manifest.load(root / "dataset")
    job = Job(
        dataset=str(root / "dataset"),
        folder=str(root / "training"),
        model=member.model,
        train=member.train,
        data=manifest.settings,
        labels="regression",
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    run = training.run(
        job, 0, 1, None, torch.device("cpu"), tell=lambda _: None, must_stop=lambda: False
    )
    assert run is not None
    for row, other in zip(result.history, run.history, strict=True):
        for name in ("loss", "val_loss", "val_mse", "val_mae", "val_r2"):
            assert row[name] == other[name]
