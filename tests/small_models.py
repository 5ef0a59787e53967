"""Small trained models, one a kind of label, made once by the real prepare and training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.spec.pipeline import Data, MlpSection, Training
from ddlflow.train import training
from ddlflow.train.job import Job

ROWS = 900


def in_turn(function: Any, items: Any, _: str, /) -> Any:
    """The map of a machine with one worker."""
    return map(function, items)


def table(labels: str, rows: int = ROWS, seed: int = 5) -> pa.Table:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, rows))
    town = random.choice(["Bonn", "Rome", "Turin"], rows, p=[0.5, 0.3, 0.2])
    year = random.integers(2019, 2023, rows)
    score = 2 * a - b + np.where(town == "Rome", 1.5, -0.5) + (year == 2020)
    score += 0.3 * random.standard_normal(rows)
    values: dict[str, Any] = {
        "binary": lambda: np.array(["no", "yes"])[(score > 0).astype(int)],
        "multiclass": lambda: np.digitize(score, [-1, 1]) * 10,
        "regression": lambda: 10 + 3 * score,
    }
    b[random.random(rows) < 0.05] = np.nan
    columns = {"id": np.arange(rows), "a": a, "b": b * 100 + 7, "town": town, "year": year}
    return pa.table(columns | {"y": values[labels]()})


@dataclass
class Trained:
    """A model's folder, with what it was made from."""

    folder: Path
    root: Path
    dataset: Path
    manifest: Manifest
    source: pa.Table
    result: dict[str, Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """``trained("binary")``; ``trained("binary", ["town"])`` has that feature alone."""
    known: dict[Any, Trained] = {}

    def make(labels: str = "binary", features: Any = ("a", "b", "town", "year")) -> Trained:
        key = labels, tuple(features)
        if key not in known:
            root = tmp_path_factory.mktemp("trained")
            source = table(labels)
            pq.write_table(source, root / "t.parquet", row_group_size=200)
            spec = Data(
                source="t.parquet",
                label="y",
                features=list(features),
                categorical=["year"] if "year" in features else [],
            )
            known[key] = fit(root, source, spec, labels)
        return known[key]

    return make


def fit(root: Path, source: pa.Table, spec: Data, labels: Any, epochs: int = 6) -> Trained:
    """Prepares the source that ``spec`` names under ``root``, and trains on it."""
    folder = root / "dataset"
    manifest = prepare(spec, labels, data_root=root, folder=folder, map=in_turn)
    job = Job(
        dataset=str(folder),
        folder=str(root / "training"),
        model=MlpSection(use="mlp", hidden=[12], dropout=0.1, batch_norm=True),
        train=Training(
            objective=labels, epochs=epochs, batch_rows=50, optimizer={"use": "adam", "lr": 0.02}
        ),
        data=spec.model_dump(mode="json"),
        labels=labels,
        virtual_ranks=2,
        threads=1,
        device="cpu",
    )
    result = training.run(
        job, 0, 1, None, torch.device("cpu"), tell=lambda event: None, must_stop=lambda: False
    )
    assert result is not None
    values = result.to_json()
    return Trained(Path(job.model_folder.location), root, folder, manifest, source, values)
