"""Training from shards against the bare PyTorch loop that an expert would write.

The bare loop holds all rows in memory, standardised beforehand, shuffles with ``randperm``, gathers
with ``index_select`` and steps a fused Adam: no tracking, no checkpoints, no validation. Ours is a
rank of a real gang with checkpoints, digest trail and events on, reading memory-mapped shards.
Both have the same rows, model, batch and threads, and take turns, so a machine that slows down
slows both: the ratio counts.

    python benchmarks/train.py [--rows 5000000] [--turns 3]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data

BARE = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.data.shards.manifest import Manifest
from ddlflow.train.split_rows import standardisation_of
folder = Path(sys.argv[1])
batch, threads, epochs = map(int, sys.argv[2:])
torch.set_num_threads(threads)
manifest = Manifest.load(folder)
files = ShardFiles.in_folder(folder, manifest.shards_of("train"))
rows = Rows(files, standardisation_of(manifest))
columns = rows.empty(rows.rows)
rows.read(0, rows.rows, columns, 0)
features, labels = (torch.from_numpy(columns[name]) for name in ("features", "label"))
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(28, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)
loss_of = torch.nn.BCEWithLogitsLoss()
for epoch in range(epochs):
    began = time.perf_counter()
    order = torch.randperm(rows.rows)
    total = 0.0
    for index in order.split(batch):
        optimizer.zero_grad(set_to_none=True)
        outputs = net(features.index_select(0, index)).squeeze(1)
        loss = loss_of(outputs, labels.index_select(0, index))
        loss.backward()
        optimizer.step()
        total += loss.detach()
    float(total)
    print(json.dumps(rows.rows / (time.perf_counter() - began)), flush=True)
"""


def bare(folder: Path, batch: int, threads: int, epochs: int) -> float:
    """Rows per second of the best epoch."""
    command = [sys.executable, "-c", BARE, str(folder), str(batch), str(threads), str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(map(json.loads, done.stdout.split()))


def ours(
    folder: Path,
    batch: int,
    threads: int,
    epochs: int,
    *,
    world: int = 1,
    hidden: Sequence[int] = (100,),
    **settings: Any,
) -> float:
    """Rows per second of the best epoch, of a gang on the local engine; ``settings`` of train."""
    from ddlflow.engines import GangEvent, GangJob
    from ddlflow.engines.local import LocalEngine
    from ddlflow.rank_protocol import RankSaid
    from ddlflow.spec.pipeline import MlpSection, Training
    from ddlflow.train.job import Job

    made = tempfile.mkdtemp(prefix="ddlflow-bench-")
    train = Training(
        objective="binary",
        epochs=epochs,
        batch_rows=batch,
        **({"checkpoint_every_s": 5} | settings),
    )
    job = Job(
        dataset=str(folder),
        folder=made,
        model=MlpSection(use="mlp", hidden=list(hidden)),
        train=train,
        data={},
        labels="binary",
        virtual_ranks=world,
        threads=threads,
        device="cpu",
    )
    seen: list[float] = []

    def on_event(heard: GangEvent) -> None:
        said = heard.event
        if heard.rank == 0 and isinstance(said, RankSaid) and said.name == "epoch":
            seen.append(said.values["rows_per_s"])

    with LocalEngine(slots=world, threads=threads) as engine:
        gang = GangJob("ddlflow.train.rank", job.to_json(), threads, f"{made}/logs", {}, (), 60)
        result = engine.gang(gang, world, on_event=on_event)
    shutil.rmtree(made)
    if result.failure is not None:
        raise SystemExit(str(result.failure))
    return max(seen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    folder = data.shards(options.rows)
    print(f"{options.rows:,} rows, mlp [100], Adam; M rows/s, median of {options.turns} turns")
    print("batch  | threads | bare | ours | ours/bare, median (least to most)")
    for batch in (1_400, 14_000):
        for threads in (1, 2):
            pairs = [
                (
                    bare(folder, batch, threads, options.epochs),
                    ours(folder, batch, threads, options.epochs),
                )
                for _ in range(options.turns)
            ]
            ratios = sorted(o / b for b, o in pairs)
            middle = [statistics.median(column) / 1e6 for column in zip(*pairs, strict=True)]
            print(
                f"{batch:>6} | {threads:>7} | {middle[0]:.2f} | {middle[1]:.2f} | "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    began = time.time()
    main()
    print(f"{time.time() - began:.0f} s in all")
