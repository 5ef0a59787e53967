"""What the same bits on any world cost: elastic against torch's DistributedDataParallel, and off.

Gangs on the local engine, one thread a rank, as many virtual ranks as ranks; the three take turns.
Then what checkpoints cost: a training that writes one every second against one that writes none
under way, and a thirtieth of the difference, as one is written every 30 s.

    python benchmarks/determinism.py [--rows 1000000] [--turns 3]
"""

import argparse
import statistics

import data
import train

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
    print("checkpoints | every second | none | cost of one every 30 s")
    for name, hidden, place, epochs in (
        ("mlp [100]", (100,), folder, 12),
        ("mlp [1000, 1000]", (1000, 1000), small, 4),
    ):
        turns = [
            [
                train.ours(
                    place, 14_000, 1, epochs, world=1, hidden=hidden, checkpoint_every_s=every
                )
                for every in (1, 1e6)
            ]
            for _ in range(options.turns)
        ]
        often, none = (statistics.median(column) / 1e6 for column in zip(*turns, strict=True))
        lost = (none / often - 1) / 30
        print(f"{name} | {often:.3f} | {none:.3f} | {lost:.2%}", flush=True)


if __name__ == "__main__":
    main()
