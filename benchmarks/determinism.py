"""What the same bits on any world cost: elastic against torch's DistributedDataParallel, and off.

Gangs on the local engine, one thread a rank, as many virtual ranks as ranks; the three take turns.
Then what a checkpoint costs of the 30 s between two: the copy of the state, for which the loop
waits, and the writing, which a thread does beside it.

    python benchmarks/determinism.py [--rows 1000000] [--turns 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import data
import torch
import train

from ddlflow.models import build
from ddlflow.spec.pipeline import Adam, MlpSection
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.saved import checkpoint
from ddlflow.train.saved.state import State

CASES = (
    ("mlp [100]", (100,), 1_400),
    ("mlp [100]", (100,), 14_000),
    ("mlp [1000, 1000]", (1000, 1000), 1_400),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    folder, small = data.shards(options.rows), data.shards(options.rows // 20)
    print("model | batch | ranks | elastic | world | off | elastic/world, median (least to most)")
    for name, hidden, batch in CASES:
        place = folder if hidden == (100,) else small
        for world in (1, 2, 4):
            turns = [
                [
                    train.ours(place, batch, 1, 3, world=world, hidden=hidden, determinism=how)
                    for how in ("elastic", "world", "off")
                ]
                for _ in range(options.turns)
            ]
            ratios = sorted(elastic / plain for elastic, plain, _ in turns)
            middle = [statistics.median(column) / 1e6 for column in zip(*turns, strict=True)]
            print(
                f"{name} | {batch:>6} | {world} | "
                + " | ".join(f"{speed:.3f}" for speed in middle)
                + f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )
    print("checkpoint of | taken from the loop | written beside it | both, of 30 s")
    for name, hidden, _ in CASES[1:]:
        taken_s, written_s = checkpoint_seconds(hidden)
        share = (taken_s + written_s) / 30
        print(f"{name} | {taken_s * 1e3:.1f} ms | {written_s * 1e3:.1f} ms | {share:.2%}")


def checkpoint_seconds(hidden: tuple[int, ...]) -> tuple[float, float]:
    """Seconds that the loop waits for a copy of the state, and that a thread takes to write it."""
    features, labels = torch.randn(64, 28), torch.rand(64).round()
    spec = MlpSection(use="mlp", hidden=list(hidden))
    net = build(spec, num_features=28, category_sizes=[], num_outputs=1)
    state = State(net, make_optimizer(Adam(use="adam"), net.parameters(), device="cpu"))
    torch.nn.functional.binary_cross_entropy_with_logits(net(features), labels).backward()
    state.optimizer.step()
    taken, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(10):
            began = time.perf_counter()
            snapshot = state.snapshot()
            taken.append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoint.write(Path(folder), step, {"settings": {}, "state": snapshot.to_plain()})
            written.append(time.perf_counter() - began)
    return statistics.median(taken), statistics.median(written)


if __name__ == "__main__":
    main()
