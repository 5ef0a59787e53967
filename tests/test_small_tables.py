"""Small tables with every default: no worse than scikit-learn's linear models on the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.shard import map_shard
from ddlflow.infer.evaluate import evaluate
from ddlflow.spec.pipeline import Data, MlpSection, Train
from ddlflow.train import training
from ddlflow.train.auto import resolve
from ddlflow.train.job import Job

WITHIN = 0.02
SEEDS = (1, 2, 3, 4, 5)  # one test split has 15 to 180 rows: a single one says little
SCORE = {"binary": "auroc", "multiclass": "accuracy", "regression": "r2"}


def sklearns(load: Callable[..., Any]) -> pd.DataFrame:
    features, label = load(return_X_y=True, as_frame=True)
    return features.rename(columns=lambda name: name.replace(" ", "_")).assign(y=label)


def penguins() -> pd.DataFrame:
    """Three kinds of bird, told by text and numbers, some of them missing."""
    random, rows = np.random.default_rng(11), 344
    kind = random.choice(3, rows, p=[0.44, 0.2, 0.36])
    male = random.random(rows) < 0.5
    means = np.array([[39, 18.3, 190, 3700], [49, 18.4, 196, 3730], [47, 15, 217, 5080]])[kind]
    spread = np.array([2.7, 0.9, 6.5, 400])
    values = means + spread * (random.standard_normal((rows, 4)) + 0.6 * male[:, None])
    values[random.random(values.shape) < 0.02] = np.nan
    frame = pd.DataFrame(values, columns=["bill", "depth", "flipper", "mass"])
    home = np.where(random.random(rows) < 0.5, np.array(["east", "south", "west"])[kind], "east")
    sex = np.where(random.random(rows) < 0.03, None, np.where(male, "male", "female"))
    return frame.assign(island=home, sex=sex, y=np.array(["A", "C", "G"])[kind])


TABLES: dict[str, tuple[Any, Callable[[], pd.DataFrame]]] = {
    "breast cancer": ("binary", lambda: sklearns(datasets.load_breast_cancer)),
    "wine": ("multiclass", lambda: sklearns(datasets.load_wine)),
    "iris": ("multiclass", lambda: sklearns(datasets.load_iris)),
    "digits": ("multiclass", lambda: sklearns(datasets.load_digits)),
    "penguins": ("multiclass", penguins),
    "diabetes": ("regression", lambda: sklearns(datasets.load_diabetes)),
}


def trained(root: Path, frame: pd.DataFrame, labels: Any, seed: int) -> tuple[float, float]:
    """The score on the test rows, and the linear model's that was fitted to the training rows."""
    root.mkdir()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), root / "t.parquet")
    spec = Data(source="t.parquet", label="y", seed=seed)
    manifest = prepare(
        spec, labels, data_root=root, folder=root / "d", map=lambda f, items, _: map(f, items)
    )
    train = resolve(
        Train(objective=labels, seed=seed), manifest.rows("train"), manifest.rows("validation")
    )
    job = Job(
        dataset=str(root / "d"),
        folder=str(root / "job"),
        model=MlpSection(use="mlp"),
        train=train,
        data=spec.model_dump(mode="json"),
        labels=labels,
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    training.run(
        job, 0, 1, None, torch.device("cpu"), tell=lambda event: None, must_stop=lambda: False
    )
    scored = evaluate(
        Path(job.model_folder.location),
        root / "d",
        "test",
        spec=train,
        feature=None,
        threads=1,
        map_over=lambda f, items, _: map(f, items),
    )
    rows = {
        split: np.concatenate(
            [map_shard(root / "d" / shard.path)["row"] for shard in manifest.shards_of(split)]
        )
        for split in ("train", "test")
    }
    return scored.metrics[SCORE[labels]], linear(frame, labels, rows["train"], rows["test"])


def linear(frame: pd.DataFrame, labels: Any, train: Any, test: Any) -> float:
    features, label = frame.drop(columns="y"), frame["y"]
    text = [name for name in features if features[name].dtype == object]
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), text),
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )
    model = make_pipeline(columns, Ridge() if labels == "regression" else LogisticRegression())
    model.fit(features.iloc[train], label.iloc[train])
    true = label.iloc[test]
    if labels == "binary":
        return float(roc_auc_score(true, model.predict_proba(features.iloc[test])[:, 1]))
    score = r2_score if labels == "regression" else accuracy_score
    return float(score(true, model.predict(features.iloc[test])))


# Of each kind of label one is looked at each time.
ALL = [
    pytest.param(name, marks=pytest.mark.long) if name in {"iris", "wine", "digits"} else name
    for name in TABLES
]


@pytest.mark.parametrize("name", ALL)
def test_the_defaults_are_no_worse_than_a_linear_model(name: str, tmp_path: Path) -> None:
    labels, made = TABLES[name]
    frame = made()
    pairs = [trained(tmp_path / str(seed), frame, labels, seed) for seed in SEEDS]
    behind = np.array([theirs - ours for ours, theirs in pairs])
    # A row of a test split of 15 is 0.067: what the splits cannot tell apart is no failure.
    told_apart = float(behind.std() / len(behind) ** 0.5)
    assert float(behind.mean()) <= WITHIN + told_apart, pairs
