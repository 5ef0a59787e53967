"""Regressions with a large mean: standardised labels inside, the label's own units outside."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.shard import map_shard
from ddlflow.infer.evaluate import evaluate
from ddlflow.infer.model import load_model
from ddlflow.spec.pipeline import Data, Model, Train, Training
from ddlflow.train import training
from ddlflow.train.bad_batch import name_rows
from ddlflow.train.job import Job

ROWS = 1500
LABELS = {  # (mean, deviation)
    "prices": (300_000.0, 50_000.0),
    "small numbers": (2e-6, 1e-9),
    "far from 0": (1e9, 1.0),
    "nanoseconds": (1.7e18, 1e6),
}
FULL = {"epochs": 400, "batch_rows": ROWS, "optimizer": {"use": "sgd", "lr": 0.1}}


def in_turn(function: Any, items: Any, _: str, /) -> Any:
    return map(function, items)


def source_of(mean: float, deviation: float) -> pa.Table:
    random = np.random.default_rng(11)
    x = random.standard_normal((ROWS, 3))
    near = x @ [1.0, -0.5, 0.2] / math.sqrt(1.29) + 0.2 * random.standard_normal(ROWS)
    near = np.round(near * 2**20) / 2**20 * deviation  # few bits: the label holds it exactly
    label = mean + near
    if mean > 1e15:
        label = np.int64(mean) + near.astype(np.int64)
    return pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "near": near, "y": label})


class Place:
    """A prepared regression, and trainings of it."""

    def __init__(self, root: Path, mean: float, deviation: float) -> None:
        self.root, self.table = root, source_of(mean, deviation)
        pq.write_table(self.table, root / "t.parquet", row_group_size=400)
        self.data = Data(source="t.parquet", label="y", features=["a", "b", "c"])
        self.folder = root / "dataset"
        self.manifest = prepare(
            self.data, "regression", data_root=root, folder=self.folder, map=in_turn
        )

    def train(self, name: str, code: Path | None = None, **train: Any) -> tuple[Job, Any]:
        values = {"objective": "regression", **FULL, **train}
        model = values.pop("model", {"use": "linear"})
        job = Job(
            dataset=str(self.folder),
            folder=str(self.root / name),
            model=TypeAdapter(Model).validate_python(model),
            train=Training.model_validate(values),
            data=self.data.model_dump(mode="json"),
            labels="regression",
            virtual_ranks=values.get("virtual_ranks", 1),
            threads=1,
            device="cpu",
            code=str(code) if code else None,
        )
        result = training.run(
            job, 0, 1, None, torch.device("cpu"), tell=lambda _: None, must_stop=lambda: False
        )
        assert result is not None
        return job, result.to_json()

    def rows(self, split: Any) -> list[int]:
        shards = [map_shard(self.folder / s.path) for s in self.manifest.shards_of(split)]
        return [int(row) for shard in shards for row in shard["row"]]


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Place]:
    return lambda name: Place(tmp_path, *LABELS[name])


@pytest.mark.parametrize("name", LABELS)
def test_predictions_are_those_of_least_squares(place: Callable[[str], Place], name: str) -> None:
    """Trained with the settings that fit any label, in its own units; scores as scikit-learn's."""
    here = place(name)
    mean, deviation = LABELS[name]
    job, result = here.train("t")
    x = np.column_stack([here.table[c].to_numpy() for c in "abc"])
    near = here.table["near"].to_numpy()  # the label less its mean: float64 is exact there
    peer = LinearRegression().fit(x[here.rows("train")], near[here.rows("train")])
    model = load_model(Path(job.model_folder.location))
    batch = here.table.combine_chunks().to_batches()[0]
    found = model.predict(batch)["prediction"]
    assert found.type == pa.float64()
    less = found.to_numpy() - (np.int64(mean) if mean > 1e15 else mean)
    steps = abs(np.spacing(mean))
    np.testing.assert_allclose(less, peer.predict(x), atol=1e-4 * deviation + 2 * steps)

    test = here.rows("test")
    how = {"spec": job.train, "feature": "a", "threads": 1, "map_over": in_turn}
    scored = evaluate(Path(job.model_folder.location), here.folder, "test", **how)
    true, predicted = near[test], peer.predict(x[test])
    metrics = scored.metrics
    assert metrics["r2"] == pytest.approx(r2_score(true, predicted), abs=1e-3)
    assert metrics["r2"] > 0.9
    assert metrics["mse"] == pytest.approx(mean_squared_error(true, predicted), rel=1e-3)
    assert metrics["loss"] == pytest.approx(metrics["mse"], rel=1e-5)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-3)
    edges = scored.curves.predicted_against_true.edges
    labels = here.table["y"].to_numpy().astype(float)[here.rows("train")]
    assert edges[0] == pytest.approx(labels.min(), rel=1e-7)
    assert edges[-1] == pytest.approx(labels.max(), rel=1e-7)
    # The losses on the way are in the same units: of the last epoch's rows, nearly the mse.
    fit = mean_squared_error(near[here.rows("train")], peer.predict(x[here.rows("train")]))
    assert result["history"][-1]["loss"] == pytest.approx(fit, rel=1e-3)
    assert result["history"][-1]["val_loss"] == pytest.approx(result["metrics"]["mse"], rel=1e-5)
    assert result["trail"][-1]["loss"] == pytest.approx(fit, rel=1e-3)


def test_the_unit_of_the_label_is_no_setting(tmp_path: Path) -> None:
    """Euros or thousands of them: the same weights, and predictions in either."""
    found = []
    for k, unit in enumerate((1.0, 1024.0)):
        root = tmp_path / str(k)
        root.mkdir()
        here = Place(root, 300.0 * unit, 50.0 * unit)
        settings = {"epochs": 5, "batch_rows": 64, "model": {"use": "mlp", "hidden": [8]}}
        _, result = here.train("t", **settings, early_stopping={"patience": 2}, clip_norm=1.0)
        found.append(result)
    assert found[0]["model_digest"] == found[1]["model_digest"]
    assert found[1]["metrics"]["rmse"] == pytest.approx(1024 * found[0]["metrics"]["rmse"])
    assert found[1]["metrics"]["loss"] == pytest.approx(1024**2 * found[0]["metrics"]["loss"])


LOSS = """
import torch

SEEN = {path!r}

def squared(outputs, labels):
    torch.save([outputs.detach(), labels], SEEN)
    return (outputs - labels) ** 2
"""


@pytest.mark.parametrize("name", ["prices", "far from 0"])
def test_a_loss_of_the_users_gets_labels_as_they_are(
    place: Callable[[str], Place], tmp_path: Path, name: str
) -> None:
    here = place(name)
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text(LOSS.format(path=str(tmp_path / "seen.pt")))
    objective = {"use": "mine:squared", "like": "regression"}
    few: dict[str, Any] = {"epochs": 1, "objective": objective, "optimizer": {"use": "adam"}}
    # Of tanh, so that the built-in loss goes through autograd too, as the user's.
    few["model"] = {"use": "mlp", "hidden": [4], "activation": "tanh"}
    job, result = here.train("as it is", code, **few)
    outputs, labels = torch.load(tmp_path / "seen.pt")
    held_out = here.table["y"].to_numpy()[here.rows("validation")].astype(np.float32)
    np.testing.assert_array_equal(labels.numpy(), held_out)
    assert float(outputs.abs().max()) < 100  # untrained, and not moved to the label's mean
    loss = np.mean((outputs.numpy() - held_out) ** 2, dtype=np.float64)
    assert result["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
    found = load_model(Path(job.model_folder.location), trust_code=True).predict(
        here.table.combine_chunks().to_batches()[0]
    )
    assert np.abs(found["prediction"].to_numpy()).max() < 100

    _, plain = here.train("plain", **(few | {"objective": "regression"}), standardise_label=False)
    assert plain["model_digest"] == result["model_digest"]

    job, result = here.train("asked", code, **few, standardise_label=True)
    _, labels = torch.load(tmp_path / "seen.pt")
    near = here.table["near"].to_numpy()
    learned, held_out = near[here.rows("train")], near[here.rows("validation")]
    expected = (held_out - learned.mean()) / learned.std()
    np.testing.assert_allclose(labels.numpy(), expected, atol=1e-5)
    found = load_model(Path(job.model_folder.location), trust_code=True).predict(
        here.table.combine_chunks().to_batches()[0]
    )
    assert found["prediction"].to_numpy().mean() == pytest.approx(LABELS[name][0], rel=0.5)


def test_classes_have_nothing_to_standardise() -> None:
    with pytest.raises(ValidationError, match="Remove standardise_label, or set objective"):
        Train(objective="binary", standardise_label=True)


def test_rows_are_named_with_the_values_of_the_source(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    near = random.integers(0, 60_000, 400)
    near[17] = 9_000_000
    time = 1_764_000_000_000 + near
    pq.write_table(pa.table({"t": time, "y": 1e9 + near / 1000}), tmp_path / "t.parquet")
    spec = Data(source="t.parquet", label="y", split={"validation": 0, "test": 0})
    manifest: Manifest = prepare(
        spec, "regression", data_root=tmp_path, folder=tmp_path / "d", map=in_turn
    )
    assert manifest.columns.offsets
    said = name_rows(tmp_path / "d", BatchOrder(400, 400, 1, seed=7), 0, 0)
    assert "row 17 (t = 1764009000000)" in said or "row 17 (y = 1000009000)" in said
