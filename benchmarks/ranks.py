"""One rank or two, for small and large global batches: what `workers: auto` decides by.

Each line is a gang on the local engine with one thread a rank and as many virtual ranks as ranks.

    python benchmarks/ranks.py [--rows 1000000] [--turns 3]
"""

import argparse
import statistics

import data
import train

from ddlflow.train.parallel.world import fitting_world

PARAMETERS = 28 * 100 + 100 + 100 + 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    folder = data.shards(options.rows)
    print("batch  | MFLOP a step | 1 rank | 2 ranks | 2/1, median (least to most) | auto takes")
    for batch in (1_400, 5_600, 14_000, 56_000):
        pairs = [
            (train.ours(folder, batch, 1, 3), train.ours(folder, batch, 1, 3, world=2))
            for _ in range(options.turns)
        ]
        ratios = sorted(two / one for one, two in pairs)
        one, two = (statistics.median(column) / 1e6 for column in zip(*pairs, strict=True))
        auto = fitting_world(cores=2, num_parameters=PARAMETERS, batch_rows=batch).world
        print(
            f"{batch:>6} | {6 * PARAMETERS * batch / 1e6:>12,.0f} | {one:.2f} | {two:.2f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {auto}",
            flush=True,
        )


if __name__ == "__main__":
    main()
