"""Folds x settings of mlp [100] in one process and one thread: fused, and one after another.

    python benchmarks/sweep_core.py                  5 folds x 20 learning rates, batch 128
    python benchmarks/sweep_core.py --table          batches of 32 to 16,384 rows

One epoch over 5 folds of 100,000 collider rows: a training has 80,000 rows and is scored on 20,000.
Against stacks: the same trainings one after another by the loop that an expert would write
(nn.Sequential, fused Adam, index_select), with and without a score at the end, and by our solo
loop. Figures are seconds a training, and how many times as fast as each the stacks are.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from data import ROOT, shards
from torch import nn

from ddlflow.data.shards.manifest import Manifest, Shard
from ddlflow.data.shards.rows import ShardFiles, Standardisation
from ddlflow.data.shards.shard import map_shard, write_shard
from ddlflow.data.shards.statistics import empty
from ddlflow.models.standardise import Standardise
from ddlflow.spec.model import MlpSection
from ddlflow.spec.pipeline import Train
from ddlflow.sweep.fused.plan import plan_stacks
from ddlflow.sweep.fused.streams import Pool
from ddlflow.sweep.member import FoldRows, Member, Prepared
from ddlflow.sweep.run import Piece, cut, start
from ddlflow.train.tasks.table import task_for

ROWS, FOLDS = 100_000, 5
CLOCK = time.perf_counter
BATCHES = (32, 128, 512, 2048, 16_384)


def prepared() -> Prepared:
    """The first 100,000 training rows, a fifth to each fold."""
    folder = shards(112_000)
    manifest = Manifest.load(folder)
    parts = [map_shard(folder / shard.path) for shard in manifest.shards_of("train")]
    whole = {name: np.concatenate([part[name] for part in parts])[:ROWS] for name in parts[0]}
    paths = []
    for k in range(FOLDS):
        paths.append(ROOT / f"folds-{ROWS}" / f"{k}.arrow")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        if not paths[-1].exists():
            rows = slice(ROWS * k // FOLDS, ROWS * (k + 1) // FOLDS)
            write_shard(
                paths[-1], {name: np.ascontiguousarray(a[rows]) for name, a in whole.items()}
            )
    folds: dict[int | None, FoldRows] = {k: _fold(paths, k) for k in range(FOLDS)}
    return Prepared(folder, manifest, folds)


def _fold(paths: list[Path], held_out: int) -> FoldRows:
    train = [path for k, path in enumerate(paths) if k != held_out]
    features = np.concatenate([map_shard(path)["features"] for path in train]).astype(np.float64)
    buffers = Standardise(features.mean(0), features.var(0))
    scaling = Standardisation(buffers.mean.numpy(), buffers.scale.numpy(), False)
    return FoldRows(_files(train), _files(paths[held_out : held_out + 1]), scaling, empty(1, 0))


def _files(paths: Sequence[Path]) -> ShardFiles:
    shards = [Shard(str(path), "train", None, ROWS // FOLDS, "") for path in paths]
    return ShardFiles(tuple(shards), lambda some: [Path(shard.path) for shard in some])


def members(settings: int, batch_rows: int) -> list[Member]:
    rates = np.geomspace(1e-4, 1e-2, settings).tolist()
    return [
        Member(
            f"{k}/{fold}",
            MlpSection(use="mlp", hidden=[100]),
            Train(
                objective="binary",
                epochs=1,
                batch_rows=batch_rows,
                optimizer={"use": "adam", "lr": rate},
            ),
            fold,
        )
        for k, rate in enumerate(rates)
        for fold in range(FOLDS)
    ]


def expert(data: Prepared, member: Member, *, score: bool) -> float:
    """What a training takes that does nothing but train (and score, where asked)."""
    fold = data.folds[member.fold]
    features, label = _columns(fold.train, fold)
    began = CLOCK()
    net = nn.Sequential(nn.Linear(features.shape[1], 100), nn.ReLU(), nn.Linear(100, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=member.train.optimizer.lr, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    order = torch.randperm(len(features))
    for index in order.split(member.train.batch_rows):
        optimizer.zero_grad(set_to_none=True)
        outputs = net(features.index_select(0, index)).squeeze(1)
        loss_of(outputs, label.index_select(0, index)).backward()
        optimizer.step()
    if score:
        held_out, truth = _columns(fold.validation, fold)
        with torch.no_grad():
            scores = task_for("binary").empty_scores()
            scores.update(net(held_out).squeeze(1), truth, 0.0)
            scores.compute()
    return CLOCK() - began


def _columns(files: ShardFiles, fold: FoldRows) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [map_shard(path) for path in files.locate(files.shards)]
    own = fold.standardisation
    features = (np.concatenate([part["features"] for part in parts]) - own.mean) * own.scale
    labels = np.concatenate([part["label"] for part in parts])
    return torch.from_numpy(features), torch.from_numpy(labels)


def seconds(work: Callable[[], object]) -> float:
    began = CLOCK()
    work()
    return CLOCK() - began


def train(piece: Piece, data: Prepared, pool: Pool | None = None) -> None:
    """Trains a piece to its end, as a worker does."""
    torch.set_flush_denormal(piece.fused)
    trained = start(piece, data, pool=pool)
    while trained.alive:
        trained.run_epoch()
    torch.set_flush_denormal(False)


def measure(data: Prepared, settings: int, batch_rows: int, turns: int) -> None:
    """One line of the table: in each turn all stacks, then one training a fold of the others."""
    everyone = members(settings, batch_rows)
    some = [next(m for m in everyone if m.fold == fold) for fold in range(FOLDS)]
    others: dict[str, Callable[[Member], float]] = {
        "expert": lambda member: expert(data, member, score=False),
        "expert, scored": lambda member: expert(data, member, score=True),
        "solo": lambda member: seconds(lambda: train(Piece((member,), False, ""), data)),
    }
    size = 0

    def stacks() -> None:
        nonlocal size
        pool = Pool(data)
        (group,) = plan_stacks(everyone, data)
        for piece in cut(group, data):
            size = len(piece.members)
            train(piece, data, pool=pool)

    took: dict[str, list[float]] = {name: [] for name in ("stacks", *others)}
    train(Piece((some[0],), False, ""), data)  # what is imported once
    for _ in range(turns):
        took["stacks"].append(seconds(stacks) / len(everyone))
        for name, one in others.items():
            took[name].append(sum(one(m) for m in some) / FOLDS)
    told = [f"batch {batch_rows:6,d}: {len(everyone)} trainings in stacks of about {size}"]
    for name, values in took.items():
        ratios = [theirs / ours for theirs, ours in zip(values, took["stacks"], strict=True)]
        told.append(
            f"{name} {median(values):.4f} s ({median(ratios):.2f} x, "
            f"{min(ratios):.2f} to {max(ratios):.2f})"
        )
    print("; ".join(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        globals()["CLOCK"] = time.process_time
    torch.set_num_threads(1)
    data = prepared()
    for batch_rows in BATCHES if arguments.table else [128]:
        measure(data, arguments.settings, batch_rows, arguments.turns)


if __name__ == "__main__":
    main()
