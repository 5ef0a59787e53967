"""Times in milliseconds as a feature and a label around 1e9, from the source to predictions."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from ddlflow.infer.model import load_model
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

MS = 1_764_000_000_000
PIPELINE: dict[str, Any] = {
    "name": "p",
    "data": {"source": "t.parquet", "label": "y", "exclude": ["other"]},
    "model": {"use": "linear"},
    "train": {"epochs": 60, "batch_rows": 100, "optimizer": {"use": "adam", "lr": 0.02}},
    "report": {"histogram": "t_ms"},
    "infer": {"keys": ["t_ms"]},
}


def frame_of(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    near, b = random.integers(0, 60_000, rows), random.standard_normal(rows)
    late = near + 6_000 * random.standard_normal(rows) > 30_000
    amount = 1e9 + near / 30_000 + b + 0.1 * random.standard_normal(rows)
    return pd.DataFrame({"t_ms": MS + near, "b": b, "late": late.astype(int), "amount": amount})


def run(root: Path, label: str, objective: str, *changes: str) -> dict[str, Any]:
    """Every stage, on one worker; the model is then applied to a CSV of another name."""
    for folder in ("pipelines", "conf", "data"):
        (root / folder).mkdir(exist_ok=True)
    names = (
        {"late": "y", "amount": "other"} if label == "late" else {"amount": "y", "late": "other"}
    )
    train, later = frame_of(2000, 0).rename(columns=names), frame_of(700, 1).rename(columns=names)
    train.to_parquet(root / "data" / "t.parquet", index=False)
    later[["b", "t_ms"]].to_csv(root / "data" / "tomorrow.csv", index=False)
    values = PIPELINE | {"train": PIPELINE["train"] | {"objective": objective}}
    values = values | {"infer": {"source": "tomorrow.csv", "keys": ["t_ms"]}}
    (root / "pipelines" / "p.yaml").write_text(yaml.safe_dump(values))
    site = {"engine": {"use": "local", "workers": 1, "threads": 1}}
    (root / "conf" / "local.yaml").write_text(yaml.safe_dump(site))
    with Session(load("p", "local", list(changes)), Screen(io.StringIO())) as session:
        prepared = stages.prepare(session)
        trained = stages.train(session, prepared)
        scored = stages.evaluate(session, prepared, trained)
        inferred = stages.infer(session, prepared, trained)
    files = sorted(Path(inferred.value.predictions).glob("*.parquet"))
    return {
        "train": train,
        "later": later,
        "model": load_model(Path(trained.value.model)),
        "metrics": scored.value.metrics,
        "scores": json.loads((Path(scored.folder) / "scores.json").read_text()),
        "predictions": pd.concat([pq.read_table(file).to_pandas() for file in files]),
        "warnings": prepared.value.warnings,
    }


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_times_in_milliseconds_are_learned_and_read_later(tmp_path: Path) -> None:
    found = run(tmp_path, "late", "binary")
    train, later = found["train"], found["later"]
    assert not found["warnings"]
    scaler = StandardScaler().fit(train[["t_ms", "b"]] - [MS, 0])
    peer = LogisticRegression().fit(scaler.transform(train[["t_ms", "b"]] - [MS, 0]), train["y"])
    chances = peer.predict_proba(scaler.transform(later[["t_ms", "b"]] - [MS, 0]))[:, 1]
    auroc = roc_auc_score(later["y"], found["predictions"]["probability"])
    assert auroc == pytest.approx(roc_auc_score(later["y"], chances), abs=0.005)
    assert (found["predictions"]["t_ms"].astype("int64") == later["t_ms"]).all()

    frames = [later[["t_ms", "b"]], later[["b", "t_ms"]].astype({"t_ms": "float64"})]
    for frame in frames:
        told = found["model"].predict_frame(frame)["probability"].to_numpy()
        np.testing.assert_allclose(told, found["predictions"]["probability"], rtol=1e-6)

    histogram = found["scores"]["histogram"]
    edges = np.array(histogram["edges"])
    assert MS <= edges[0] < edges[-1] <= MS + 60_000
    assert np.sum(histogram["counts"]) > 0.97 * found["metrics"]["rows"]


def test_a_label_around_a_thousand_million_is_predicted(tmp_path: Path) -> None:
    found = run(tmp_path, "amount", "regression")
    train, later = found["train"], found["later"]
    peer = LinearRegression().fit(train[["t_ms", "b"]] - [MS, 0], train["y"] - 1e9)
    expected = peer.predict(later[["t_ms", "b"]] - [MS, 0])
    told = found["predictions"]["prediction"] - 1e9
    np.testing.assert_allclose(told, expected, atol=0.05)
    assert r2_score(later["y"], found["predictions"]["prediction"]) > 0.97
    assert found["metrics"]["r2"] > 0.97
    assert found["metrics"]["rmse"] == pytest.approx(0.1, rel=0.3)
    assert found["metrics"]["loss"] == pytest.approx(found["metrics"]["mse"], rel=1e-4)


def test_one_zero_among_the_times_is_told(tmp_path: Path) -> None:
    """It moves no centre; but the deviation that it makes hides the others, and that is said."""
    frame = frame_of(2000, 0).rename(columns={"late": "y", "amount": "other"})
    frame.loc[5, "t_ms"] = 0
    (tmp_path / "data").mkdir()
    frame.to_parquet(tmp_path / "data" / "t.parquet", index=False)
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump(PIPELINE | {"train": {"objective": "binary"}, "data": PIPELINE["data"]})
    )
    (tmp_path / "local.yaml").write_text(yaml.safe_dump({"engine": {"use": "local"}}))
    with Session(load("p.yaml", "local.yaml"), Screen(io.StringIO())) as session:
        (warning,) = stages.prepare(session).value.warnings
    assert warning.startswith("Column t_ms: many of its values are about ")
    assert "Leave empty what stands for a missing value" in warning
