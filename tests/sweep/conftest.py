"""A small prepared data set with folds, members of it, and what they train to alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from ddlflow.data.prepare import small_ranges
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Shard
from ddlflow.data.shards.rows import ShardFiles, Standardisation
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.statistics import Statistics, of_column
from ddlflow.models.standardise import Standardise
from ddlflow.spec.pipeline import Data, Model, Split, Training
from ddlflow.sweep.fused.plan import MemberGroup, plan_stacks
from ddlflow.sweep.member import FoldRows, Member, Prepared, Result, whole
from ddlflow.sweep.run import Piece, start
from ddlflow.train.saved import checkpoint

ROWS = 1100
FEATURES = {"numbers": ["a", "b", "c"], "all": ["a", "b", "c", "town", "day"], "codes": ["town"]}
MODEL: TypeAdapter[Any] = TypeAdapter(Model)
ADAM = {"use": "adam", "lr": 0.01}


def table(labels: str) -> pa.Table:
    random = np.random.default_rng(3)
    a, b, c = random.standard_normal((3, ROWS)).astype(np.float32)
    town = random.choice(["Bonn", "Rome", "Turin"], ROWS, p=[0.5, 0.3, 0.2])
    day = random.choice(["Mo", "Tu", "We", "Th", "Fr"], ROWS)
    score = 2 * a - b + np.where(town == "Rome", 1.5, -0.5) + 0.6 * random.standard_normal(ROWS)
    values = {
        "binary": lambda: (score > 0).astype(np.int64),
        "multiclass": lambda: np.array(["low", "mid", "top"])[np.digitize(score, [-1, 1])],
        "regression": lambda: (1 + score).astype(np.float64),
    }
    b[random.random(ROWS) < 0.05] = np.nan
    columns = {"y": values[labels](), "a": a, "b": b * 100 + 7, "c": c, "town": town, "day": day}
    return pa.table(columns)


def fold_of(folder: Path, shards: Sequence[Shard], fold: int, folds: int) -> FoldRows:
    """Every so manieth shard is validated on; the statistics are the others'."""
    train = [shard for k, shard in enumerate(shards) if k % folds != fold]
    held_out = [shard for k, shard in enumerate(shards) if k % folds == fold]
    parts = [map_shard(folder / shard.path) for shard in train]
    features = [p.get("features", np.empty((len(p["label"]), 0), np.float32)) for p in parts]
    rows = np.concatenate(features).astype(np.float64)
    buffers = Standardise(np.nanmean(rows, 0), np.nanvar(rows, 0))
    scaling = Standardisation(
        buffers.mean.numpy(), buffers.scale.numpy(), bool(np.isnan(rows).any())
    )
    labels = np.concatenate([p["label"] for p in parts]).astype(np.float32)
    facts = np.array(of_column(labels))[:, None]
    none = np.zeros(0, np.int64)
    label = Statistics(len(labels), *facts, none)  # type: ignore[arg-type]
    files = (ShardFiles.in_folder(folder, some) for some in (train, held_out))
    return FoldRows(*files, scaling, label)


def to_the_end(
    piece: Piece, prepared: Prepared, *, checkpoints: Path | None = None, **more: Any
) -> dict[str, Result]:
    """Trains a piece epoch by epoch, as a worker does, from its last checkpoint if there is one."""
    trained = start(piece, prepared, **more)
    saved = None if checkpoints is None else checkpoint.latest(checkpoints)
    if saved is not None:
        trained.restore(saved)
    while trained.alive:
        trained.run_epoch()
    return trained.results


@dataclass
class Ground:
    """A prepared data set, and what is done on it."""

    prepared: Prepared
    labels: Any
    data: dict[str, Any]

    def member(
        self, id_: str = "m", *, model: Any = None, fold: int | None = None, **train: Any
    ) -> Member:
        standard = {"objective": self.labels, "epochs": 1, "batch_rows": 64, "optimizer": ADAM}
        section = MODEL.validate_python(model or {"use": "mlp", "hidden": [8]})
        return Member(id_, section, Training(**(standard | train)), fold)

    def train(self, piece: Piece, **more: Any) -> dict[str, Result]:
        return to_the_end(piece, self.prepared, **more)

    def groups(self, members: Sequence[Member]) -> list[MemberGroup]:
        return plan_stacks(members, self.prepared)

    def fused(self, members: Sequence[Member]) -> dict[str, Result]:
        (group,) = self.groups(members)
        assert group.apart is None
        return to_the_end(Piece(group.members, True, ""), self.prepared)

    def apart(self, members: Sequence[Member]) -> dict[str, Result]:
        found: dict[str, Result] = {}
        for member in members:
            found |= to_the_end(Piece((member,), False, ""), self.prepared)
        return found


def made(root: Path, labels: str, features: str) -> Ground:
    (root / "t").mkdir()
    rows = table(labels)
    for k, first in enumerate(range(0, ROWS, 190)):  # a shard each
        pq.write_table(rows.slice(first, 190), root / "t" / f"{k}.parquet")
    spec = Data(
        source="t",
        label="y",
        features=FEATURES[features],
        split=Split(validation=0.2, test=0.0),
    )
    folder = root / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_ranges, "SMALL", 10**9)  # none is: else they would share one shard
        manifest = prepare(
            spec, labels, data_root=root, folder=folder, map=lambda f, items, _: map(f, items)
        )
    shards = manifest.shards_of("train")
    folds: dict[int | None, FoldRows] = {None: whole(folder, manifest)}
    folds |= {k: fold_of(folder, shards, k, 3) for k in range(3)}
    return Ground(Prepared(folder, manifest, folds), labels, spec.model_dump(mode="json"))


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ground]:
    """``ground("binary", "all")``: made once for each kind of label and choice of features."""
    known: dict[tuple[str, str], Ground] = {}

    def make(labels: str = "binary", features: str = "numbers") -> Ground:
        if (labels, features) not in known:
            root = tmp_path_factory.mktemp("sweep")
            known[labels, features] = made(root, labels, features)
        return known[labels, features]

    return make


def difference(found: Result, expected: Result) -> float:
    """The greatest difference of two trainings, relative to each tensor's greatest number.

    A lone bias may happen to be near 0, and its relative error large: the least scale is 0.05.
    """
    assert found.tensors is not None
    assert expected.tensors is not None
    worst = 0.0
    for name, tensor in expected.tensors.items():
        scale = max(float(tensor.abs().max()), 0.05) if tensor.numel() else 1.0
        difference = (found.tensors[name] - tensor).abs()
        worst = max(worst, float(difference.max()) / scale if tensor.numel() else 0.0)
    for row, other in zip(found.history, expected.history, strict=True):
        assert row.keys() == other.keys()
        assert row["step"] == other["step"]
        worst = max(worst, abs(row["loss"] - other["loss"]) / abs(other["loss"]))
        assert row["lr"] == pytest.approx(other["lr"], rel=1e-9)
    return worst


@pytest.fixture(scope="session")
def unlike() -> Callable[[Result, Result], float]:
    return difference
