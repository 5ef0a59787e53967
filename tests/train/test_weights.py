"""Rows that count unlike, by a weight or by their class, held against numpy and scikit-learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as exact
import torch
from sklearn.utils.class_weight import compute_class_weight

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import DataError, SpecError
from ddlflow.infer.model import load_model
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.check import check
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

ROWS, LR, EPOCHS = 3_000, 0.2, 6
PIPELINE = """
name: t
data: {source: t.FORMAT, label: y, DATA split: {validation: 0.2, test: 0.2}}
model: {use: linear}
train: {objective: KIND, epochs: 6, batch_rows: 10000, optimizer: {use: sgd, lr: 0.2}, TRAIN}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conf" / "local.yaml").write_text("engine: {use: local, workers: 1}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frame_of(kind: str) -> pd.DataFrame:
    random = np.random.default_rng(8)
    a, b = random.standard_normal((2, ROWS))
    y: Any = np.where(a + b + random.standard_normal(ROWS) > 2.5, "yes", "no")
    if kind == "regression":
        y = 3 * a - b + random.standard_normal(ROWS)
    return pd.DataFrame({"a": a, "w": random.lognormal(0, 1.5, ROWS), "b": b, "y": y})


def opened(
    frame: pd.DataFrame, kind: str, *, data: str = "", train: str = "", format_: str = "csv"
) -> Session:
    if format_ == "csv":
        frame.to_csv("data/t.csv", index=False)
    else:
        frame.to_parquet("data/t.parquet", index=False, row_group_size=700)
    text = PIPELINE.replace("KIND", kind).replace("DATA", data).replace("FORMAT", format_)
    Path("pipelines/t.yaml").write_text(text.replace(", TRAIN", train))
    return Session(load("t"), Screen())


def rows_of(folder: str, split: Any) -> dict[str, np.ndarray]:
    shards = [
        map_shard(Path(folder) / shard.path)
        for shard in Manifest.load(Path(folder)).shards_of(split)
    ]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def by_numpy(rows: dict[str, np.ndarray], weights: np.ndarray, kind: str) -> np.ndarray:
    """The coefficients and the bias after some steps over all rows, from 0."""
    x = (rows["features"] - rows["features"].mean(0)) / rows["features"].std(0)
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    y = rows["label"].astype(np.float64)
    if kind == "regression":
        y = (y - y.mean()) / y.std()
    weights = weights / weights.mean()
    found = np.zeros(3)
    for _ in range(EPOCHS):
        given = x @ found
        slope = 2 * (given - y) if kind == "regression" else 1 / (1 + np.exp(-given)) - y
        found -= LR * (x * (weights * slope)[:, None]).mean(0)
    return found


@pytest.mark.parametrize(
    ("kind", "data", "train"),
    [
        ("binary", "weight: w,", ""),
        ("binary", "exclude: [w],", ", class_weights: balanced"),
        ("binary", "exclude: [w],", ", class_weights: {yes: 5}"),
        ("binary", "weight: w,", ", class_weights: balanced"),
        ("regression", "weight: w,", ""),
    ],
)
@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_weights_are_in_the_loss_and_in_the_metrics(
    project: Path, kind: str, data: str, train: str, format_: str
) -> None:
    if format_ == "parquet" and (kind, train) != ("binary", ""):
        return
    with opened(frame_of(kind), kind, data=data, train=train, format_=format_) as session:
        prepared = stages.prepare(session)
        trained = stages.train(session, prepared)
        evaluated = stages.evaluate(session, prepared, trained)
    rows = rows_of(prepared.folder, "train")
    own = rows.get("weight", np.ones(len(rows["label"]))).astype(np.float64)
    weights = own.copy()
    if "balanced" in train:
        weights *= compute_class_weight(
            "balanced", classes=np.array([0, 1]), y=rows["label"], sample_weight=own
        )[rows["label"].astype(int)]
    elif train:
        weights *= np.where(rows["label"] == 1, 5, 1)
    model = load_model(Path(trained.value.model))
    found = [model.predictor.net.weight.detach().numpy(), model.predictor.net.bias.detach().numpy()]
    expected = by_numpy(rows, weights, kind)
    np.testing.assert_allclose(np.concatenate([p.reshape(-1) for p in found]), expected, rtol=2e-4)
    # Metrics have the rows' own weights alone; on the validation rows they are the last epoch's.
    for split, metrics in (
        ("test", evaluated.value.metrics),
        ("validation", trained.value.metrics),
    ):
        held = rows_of(prepared.folder, split)
        how = {"sample_weight": held.get("weight")}
        with torch.no_grad():
            given = model.predictor({"features": torch.from_numpy(held["features"].copy())})
            given = given.double().numpy()
        if kind == "regression":
            assert metrics["mse"] == pytest.approx(
                exact.mean_squared_error(held["label"], given, **how), rel=1e-5
            )
            assert metrics["r2"] == pytest.approx(
                exact.r2_score(held["label"], given, **how), rel=1e-5
            )
            continue
        shares = 1 / (1 + np.exp(-given))
        assert metrics["log_loss"] == pytest.approx(
            exact.log_loss(held["label"], shares, **how), rel=1e-5
        )
        assert metrics["auroc"] == pytest.approx(
            exact.roc_auc_score(held["label"], given, **how), abs=5e-4
        )


def test_two_ranks_of_slices_end_with_the_same_weights(
    project: Path, bench_digest: Callable[[int], str]
) -> None:
    assert bench_digest(1) == bench_digest(2)


@pytest.fixture
def bench_digest(project: Path) -> Callable[[int], str]:
    def digest(workers: int) -> str:
        (project / "conf" / "local.yaml").write_text(
            f"engine: {{use: local, workers: {workers}}}\nstorage: s{workers}\n"
        )
        train = ", class_weights: balanced, virtual_ranks: 4"
        with opened(frame_of("binary"), "binary", data="weight: w,", train=train) as session:
            return str(stages.train(session, stages.prepare(session)).value.model_digest)

    return digest


def test_folds_have_the_weights_of_their_own_rows(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(frame_of("binary"), "binary", data="weight: w,") as session:
        Path("pipelines/t.yaml").write_text(
            Path("pipelines/t.yaml").read_text() + "cv: {folds: 3, predictions: true}\n"
        )
    with Session(load("t"), Screen()) as session:
        prepared = stages.prepare(session)
        validated = sweeps.cross_validate(session, prepared)
    assert "rows that count unlike (data.weight, train.class_weights)" in capsys.readouterr().err
    manifest = Manifest.load(Path(prepared.folder))
    weights = rows_of(prepared.folder, "train")
    by_row = dict(zip(weights["row"].tolist(), weights["weight"].tolist(), strict=True))
    for fold, path in enumerate(sorted(Path(validated.value.predictions).glob("*.parquet"))):
        held = pd.read_parquet(path)
        how = {"sample_weight": held["row"].map(by_row)}
        column = next(name for name in held if name.startswith("probability"))
        expected = exact.roc_auc_score(held["label"] == "yes", held[column], **how)
        found = validated.value.folds[fold].metrics["auroc"]
        assert found == pytest.approx(expected, abs=1e-3)
        train, _ = manifest.shards_of_fold(fold)
        own = [map_shard(Path(prepared.folder) / shard.path)["weight"] for shard in train]
        total = np.concatenate(own).astype(np.float64).sum()
        assert sum(manifest.weights("train", fold)[0]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "data", "train", "said"),
    [
        (lambda f: f.assign(w=-f["w"]), "weight: w,", "", r"negative or infinite .*: w \(3000\)"),
        (lambda f: f.assign(w=f["w"].where(f.index > 4)), "weight: w,", "", r"w \(5\)"),
        (lambda f: f.assign(w=0.0), "weight: w,", "", "is 0 in every training row"),
        (lambda f: f, "weight: v,", "", "data.weight names column v, which the source lacks"),
        (lambda f: f, "weight: y,", "", "which is the label or the split too"),
        (lambda f: f, "weight: w, features: [a, w],", "", "which is a feature too"),
        (lambda f: f.assign(w="x"), "weight: w,", "", "a weight is a number"),
    ],
)
def test_what_is_no_weight_is_refused(
    project: Path, change: Any, data: str, train: str, said: str
) -> None:
    with (
        opened(change(frame_of("binary")), "binary", data=data, train=train) as session,
        pytest.raises(DataError, match=said),
    ):
        stages.prepare(session)


def test_unknown_classes_and_classes_of_a_regression_are_refused(project: Path) -> None:
    with pytest.raises(SpecError, match="label of a regression has no classes"):
        opened(frame_of("regression"), "regression", train=", class_weights: balanced")
    with (
        opened(frame_of("binary"), "binary", train=", class_weights: {maybe: 2}") as session,
        pytest.raises(SpecError, match=r"names 'maybe', which is no class.*no, yes"),
    ):
        stages.prepare(session)


def test_a_loss_that_knows_sums_alone_is_refused_before_the_run(project: Path) -> None:
    Path("pipelines/own.py").write_text(
        "import torch.nn.functional as F\n\n\ndef loss(outputs, labels):\n"
        "    return F.binary_cross_entropy_with_logits(outputs, labels, reduction='sum')\n"
    )
    opened(frame_of("binary"), '{use: "own:loss", like: binary}', data="weight: w,")
    found = [finding.text for finding in check("t") if finding.level == "error"]
    assert len(found) == 1
    assert "own:loss gives the sum over the rows, and rows have weights" in found[0]
