"""Baselines beside the metrics, held against scikit-learn's dummy models; words on bad models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as exact
from sklearn.dummy import DummyClassifier, DummyRegressor

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.result_json import to_json
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.load import load

PIPELINE = """
name: t
data: {source: t.csv, label: y, exclude: [row], split: {validation: 0.2, test: 0.3}, DATA}
model: {use: linear}
train: {objective: KIND, epochs: 2, SETTINGS}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conf" / "local.yaml").write_text("engine: {use: local, workers: 1}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frame_of(kind: str, rows: int = 2_000) -> pd.DataFrame:
    random = np.random.default_rng(6)
    a, b = random.standard_normal((2, rows))
    y: Any = (a + random.standard_normal(rows) > 1.2).astype(int)
    if kind == "multiclass":
        y = np.array(["x", "y", "z"])[np.digitize(a + random.standard_normal(rows), [-1, 2])]
    if kind == "regression":
        y = 40 + 3 * a + random.standard_normal(rows)
    return pd.DataFrame({"row": range(rows), "a": a, "b": b, "y": y})


def run(
    frame: pd.DataFrame, kind: str, settings: str = "", data: str = ""
) -> tuple[Stage, Stage, Stage]:
    frame.to_csv("data/t.csv", index=False)
    text = PIPELINE.replace("KIND", kind).replace("SETTINGS", settings).replace(", DATA", data)
    Path("pipelines/t.yaml").write_text(text)
    with Session(load("t"), Screen()) as session:
        prepared = stages.prepare(session)
        trained = stages.train(session, prepared)
        return prepared, trained, stages.evaluate(session, prepared, trained)


def labels_of(frame: pd.DataFrame, prepared: Stage, split: Any, column: str = "y") -> np.ndarray:
    folder = Path(prepared.folder)
    shards = Manifest.load(folder).shards_of(split)
    rows = np.concatenate([map_shard(folder / shard.path)["row"] for shard in shards])
    return frame[column].to_numpy()[rows]


def by_scikit_learn(kind: str, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    if kind == "regression":
        given = DummyRegressor().fit(np.zeros((len(train), 1)), train).predict(test[:, None])
        mse = exact.mean_squared_error(test, given)
        mae = exact.mean_absolute_error(test, given)
        r2 = exact.r2_score(test, given)
        return {"loss": mse, "mse": mse, "rmse": mse**0.5, "mae": mae, "r2": r2}
    dummy = DummyClassifier().fit(np.zeros((len(train), 1)), train)
    chosen, shares = dummy.predict(test), dummy.predict_proba(test)
    loss = exact.log_loss(test, shares)
    found = {"loss": loss, "log_loss": loss, "accuracy": exact.accuracy_score(test, chosen)}
    if kind == "multiclass":
        macro = exact.f1_score(test, chosen, average="macro", zero_division=0)
        return found | {"f1_macro": macro}
    return found | {
        "auroc": 0.5,
        "average_precision": exact.average_precision_score(test, shares[:, 1]),
        "f1": exact.f1_score(test, chosen),
        "brier": exact.brier_score_loss(test, shares[:, 1]),
    }


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_each_metric_stands_beside_a_model_without_features(project: Path, kind: str) -> None:
    frame = frame_of(kind)
    prepared, _, evaluated = run(frame, kind, "optimizer: {use: adam, lr: 0.1}")
    train, test = (labels_of(frame, prepared, split) for split in ("train", "test"))
    expected = by_scikit_learn(kind, train, test)
    assert evaluated.value.baseline == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert evaluated.value.baseline.keys() | {"rows"} == evaluated.value.metrics.keys()
    json.dumps(to_json(evaluated.value), allow_nan=False)


def test_rows_weigh_in_the_mean_of_a_regression_too(project: Path) -> None:
    frame = frame_of("regression")
    frame["y"] += 1e9
    frame["w"] = np.where(frame["a"] > 0, 20, 1)  # the mean is another with weights
    prepared, _, evaluated = run(frame, "regression", "optimizer: {use: adam}", ", weight: w")
    split = [
        labels_of(frame, prepared, name, column) for name in ("train", "test") for column in "yw"
    ]
    train, train_weight, test, weight = split
    constant = np.full(len(test), np.average(train, weights=train_weight))
    mse = exact.mean_squared_error(test, constant, sample_weight=weight)
    mae = exact.mean_absolute_error(test, constant, sample_weight=weight)
    r2 = exact.r2_score(test, constant, sample_weight=weight)
    expected = {"loss": mse, "mse": mse, "rmse": mse**0.5, "mae": mae, "r2": r2}
    assert evaluated.value.baseline == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_model_that_learns_is_not_spoken_of(project: Path) -> None:
    *_, evaluated = run(frame_of("binary"), "binary", "optimizer: {use: adam, lr: 0.1}")
    assert evaluated.value.notes == ()


def test_a_model_that_learnt_nothing_is_said_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = frame_of("regression")
    frame["y"] = np.random.default_rng(1).standard_normal(len(frame))  # nothing tells of it
    settings = "optimizer: {use: sgd, lr: 0.3}, batch_rows: 8"
    *_, evaluated = run(frame, "regression", settings)
    (note,) = evaluated.value.notes
    assert note.startswith("mse on the test rows is 1.")
    assert "no better than the" in note
    assert f"note: {note}" in capsys.readouterr().err


def test_predictions_of_one_class_are_said_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = frame_of("binary")
    frame["y"] = (frame["a"] > 2.2).astype(int)  # 1 in 70
    frame["a"] += np.random.default_rng(2).standard_normal(len(frame))
    _, trained, evaluated = run(frame, "binary", "optimizer: {use: adam, lr: 0.1}")
    (note,) = evaluated.value.notes
    assert note.startswith("All predictions of the test rows are one class. Try train.class_weig")
    said = capsys.readouterr().err
    assert "All predictions of the validation rows in the kept epoch 2 are one class" in said
    assert [row["predicted_classes"] for row in trained.value.history] == [1, 1]
