"""Real flights: label, features, condition and split derived in one file, as good as boosted trees.

Trees get the same rows and the same facts, computed by pandas and encoded by scikit-learn.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OrdinalEncoder

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

PROJECT = Path(__file__).resolve().parents[1]
WORDS = ["carrier", "origin", "dest"]


def rows_of(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a split's rows in the source, and their labels."""
    shards = [s for s in Manifest.load(folder).shards if s.split == split]
    parts = [map_shard(folder / shard.path) for shard in shards]
    rows = np.concatenate([part["row"] for part in parts])
    return rows, np.concatenate([part["label"] for part in parts])


def trees(frame: pd.DataFrame, train: np.ndarray, test: np.ndarray) -> float:
    """The AUROC of scikit-learn's boosted trees on what is known at departure."""
    date = pd.to_datetime(frame[["year", "month", "day"]])
    known = frame[["dep_delay", "distance", *WORDS]].assign(
        clock=frame["hour"] + frame["minute"] / 60,
        yearday=date.dt.dayofyear,
        weekday=date.dt.dayofweek,
    )
    known[WORDS] = OrdinalEncoder().fit_transform(known[WORDS])
    late = frame["arr_delay"].to_numpy() > 15
    model = HistGradientBoostingClassifier(
        max_iter=100, random_state=0, categorical_features=[*WORDS, "weekday"]
    )
    model.fit(known.iloc[train], late[train])
    return float(roc_auc_score(late[test], model.predict_proba(known.iloc[test])[:, 1]))


@pytest.mark.parametrize(
    "split",
    [{"validation": 0.1, "test": 0.2}, pytest.param({"column": "part"}, marks=pytest.mark.long)],
)
def test_late_flights_are_told_as_well_as_by_boosted_trees(
    tmp_path: Path, real_data: Path, split: dict[str, Any]
) -> None:
    where = "data.where=arr_delay is not null and flight % 2 = 0"  # half of them, for time's sake
    request = load(
        str(PROJECT / "pipelines/nycflights.yaml"),
        str(PROJECT / "conf/local.yaml"),
        [
            f"data.split={split}",
            "data.source=nycflights13.parquet",
            where,
            f"data_root={real_data / 'tables'}",
            f"storage={tmp_path / 'storage'}",
            "engine={use: local, workers: 1, threads: 1}",
        ],
    )
    with Session(request, Screen()) as session:
        prepared = stages.prepare(session)
        scored = stages.evaluate(session, prepared, stages.train(session, prepared))
    frame = pd.read_parquet(real_data / "tables/nycflights13.parquet")
    folder = Path(prepared.folder)
    (train, label), (test, _) = rows_of(folder, "train"), rows_of(folder, "test")
    assert np.array_equal(label, frame["arr_delay"].to_numpy()[train] > 15)
    kept = frame["arr_delay"].notna() & (frame["flight"] % 2 == 0)
    assert sum(prepared.value.rows.values()) == kept.sum()
    assert prepared.value.dropped["where"] == len(frame) - kept.sum()
    if "column" in split:
        assert frame["month"].iloc[train].max() == 9
        assert frame["month"].iloc[test].min() == 11
    theirs = trees(frame, train, test)
    print(f"\nAUROC {scored.value.metrics['auroc']:.4f}, trees {theirs:.4f}")
    assert scored.value.metrics["auroc"] >= theirs - 0.01
