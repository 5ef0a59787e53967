"""Folds x settings of mlp [100] in one process and one thread: fused, and one after another.

    python benchmarks/sweep_core.py                  5 folds x 20 learning rates, batch 128
    python benchmarks/sweep_core.py --table          batches of 32 to 16,384 rows, 5 x 4

One epoch over 5 folds of 100,000 collider rows: a training has 80,000 rows and is scored on 20,000.
Against stacks: the same trainings one after another by the loop that an expert would write
(nn.Sequential, fused Adam, index_select), with and without a score at the end, and by our solo
loop. Figures are seconds a training, and how many times as fast as each the stacks are.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import ROOT, shards
from torch import nn

from ddlflow.data.manifest import Manifest
from ddlflow.data.rows import Standardisation
from ddlflow.data.shard import map_shard, write_shard
from ddlflow.models.standardise import Standardise
from ddlflow.spec.model import Mlp
from ddlflow.spec.pipeline import Train
from ddlflow.sweep.member import FoldRows, Member, Prepared
from ddlflow.sweep.plan import plan_stacks
from ddlflow.sweep.run import Piece, cut, run_stack
from ddlflow.sweep.streams import Pool
from ddlflow.train.metrics import scores_for

ROWS, FOLDS = 100_000, 5
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
    train = tuple(path for k, path in enumerate(paths) if k != held_out)
    features = np.concatenate([map_shard(path)["features"] for path in train]).astype(np.float64)
    buffers = Standardise(features.mean(0), features.var(0))
    scaling = Standardisation(buffers.mean.numpy(), buffers.scale.numpy(), False)
    return FoldRows(train, (paths[held_out],), scaling)


def members(settings: int, batch_rows: int) -> list[Member]:
    rates = np.geomspace(1e-4, 1e-2, settings).tolist()
    return [
        Member(
            f"{k}/{fold}",
            Mlp(use="mlp", hidden=[100]),
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
    began = time.process_time()
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
            scores = scores_for("binary")
            scores.update(net(held_out).squeeze(1), truth, 0.0)
            scores.compute()
    return time.process_time() - began


def _columns(paths: tuple[Path, ...], fold: FoldRows) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [map_shard(path) for path in paths]
    own = fold.standardisation
    features = (np.concatenate([part["features"] for part in parts]) - own.mean) * own.scale
    labels = np.concatenate([part["label"] for part in parts])
    return torch.from_numpy(features), torch.from_numpy(labels)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(data: Prepared, settings: int, batch_rows: int, few: int) -> None:
    """One line of the table; of the trainings one after another, the fastest of a few."""
    all_of_them = members(settings, batch_rows)
    began = time.process_time()
    (group,) = plan_stacks(all_of_them, data)
    pieces = cut(group, data)
    planned = time.process_time() - began
    pool = Pool(data)
    fused = planned + seconds(lambda: [run_stack(p, data, pool=pool) for p in pieces])
    a_training = fused / len(all_of_them)
    one = all_of_them[0]
    others = {
        "expert": min(expert(data, one, score=False) for _ in range(few)),
        "expert, scored": min(expert(data, one, score=True) for _ in range(few)),
        "solo": min(seconds(lambda: run_stack(Piece((one,), False, ""), data)) for _ in range(few)),
    }
    size = len(pieces[0].members)
    told = ", ".join(f"{k} {v:.4f} s ({v / a_training:.2f} x)" for k, v in others.items())
    print(
        f"batch {batch_rows:6,d}: {len(all_of_them)} trainings in stacks of {size}, "
        f"{a_training:.4f} s each (planned in {planned:.2f} s); {told}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--settings", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = prepared()
    if arguments.table:
        for batch_rows in BATCHES:
            measure(data, 4, batch_rows, few=3)
    else:
        measure(data, arguments.settings, 128, few=5)


if __name__ == "__main__":
    main()
