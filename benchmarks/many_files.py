"""The same rows in one file of usual row groups, in 20,000 row groups of 100, and in 20,000 files.

Each is prepared on all cores by the local engine, and trained on for an epoch by one rank; the
layouts take turns. CPU seconds are of the driver and its workers together: they count where others
keep the machine busy. Then manifests of 100,000 shards are written and read.

    python benchmarks/many_files.py [--rows 2000000] [--turns 2]
"""

import argparse
import hashlib
import resource
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import data
import pyarrow.parquet as pq
import train

SMALL_ROWS = 100
LAYOUTS = ("one file", f"row groups of {SMALL_ROWS}", f"files of {SMALL_ROWS}")


@dataclass(frozen=True)
class Run:
    """Seconds of prepare by the clock and of CPU, shards, and training rows a second."""

    seconds: float
    cpu_s: float
    shards: int
    rows_per_s: float


def source_of(layout: str, rows: int) -> Path:
    """The collider's rows in a layout, written once."""
    place = data.ROOT / f"{layout.replace(' ', '-')}-{rows}"
    if place.exists():
        return place
    table = pq.read_table(data.collider(rows))
    place.mkdir(parents=True)
    if layout == LAYOUTS[0]:
        pq.write_table(table, place / "all.parquet", row_group_size=262_144)
    elif layout == LAYOUTS[1]:
        pq.write_table(table, place / "all.parquet", row_group_size=SMALL_ROWS)
    else:
        for k in range(0, rows, SMALL_ROWS):
            pq.write_table(table.slice(k, SMALL_ROWS), place / f"{k // SMALL_ROWS:06d}.parquet")
    return place


def cpu_s() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(layout: str, rows: int, batch_rows: int) -> Run:
    """Prepares a layout and trains an epoch on it."""
    from ddlflow.data.prepare.prepare import prepare
    from ddlflow.engines.batched import map_batched
    from ddlflow.engines.local import LocalEngine
    from ddlflow.machine import cores
    from ddlflow.spec.pipeline import Data, Split

    source, folder = source_of(layout, rows), data.ROOT / f"many-{LAYOUTS.index(layout)}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    spec = Data(source=str(source), label="label", split=Split(validation=0.0, test=0.1))
    began, before = time.perf_counter(), cpu_s()
    with LocalEngine(slots=cores(), threads=1) as engine:
        manifest = prepare(
            spec,
            "binary",
            data_root=data.ROOT,
            folder=folder,
            map=lambda function, items, name: map_batched(engine, function, items),
        )
    seconds, used = time.perf_counter() - began, cpu_s() - before
    found = Run(seconds, used, len(manifest.shards), train.ours(folder, batch_rows, 1, 1))
    print(f"{layout}: {found}", file=sys.stderr, flush=True)
    return found


def manifests(shards: int) -> None:
    """Writes and reads a manifest of so many shards."""
    from ddlflow.data.shards.manifest import Manifest, Shard

    folder = data.ROOT / "many-0"
    found = [
        Shard(
            f"shards/train/{k:06d}-00000.arrow",
            "train",
            None,
            262_144,
            hashlib.sha256(str(k).encode()).hexdigest(),
            k * 262_144,
        )
        for k in range(shards)
    ]
    large = replace(Manifest.load(folder), shards=tuple(found))
    place = data.ROOT / "many-manifest"
    place.mkdir(exist_ok=True)
    began = time.process_time()
    large.save(place)
    saved, loads = time.process_time() - began, []
    for _ in range(5):
        began = time.process_time()
        Manifest.load(place)
        loads.append(time.process_time() - began)
    size = sum(path.stat().st_size for path in place.iterdir()) / 1e6
    print(
        f"manifest of {shards:,} shards, {size:.1f} MB: written in {saved:.2f} s of CPU, ", end=""
    )
    print(f"read in {min(loads):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=1_400)
    options = parser.parse_args()
    print(f"{options.rows:,} rows, median of {options.turns} turns")
    print("layout | prepare, s | CPU s | shards | train, M rows/s | one file / it (least to most)")
    turns = [
        {layout: run(layout, options.rows, options.batch_rows) for layout in LAYOUTS}
        for _ in range(options.turns)
    ]
    for layout in LAYOUTS:
        own = [turn[layout] for turn in turns]
        ratios = [turn[LAYOUTS[0]].rows_per_s / turn[layout].rows_per_s for turn in turns]
        print(
            f"{layout} | {statistics.median(one.seconds for one in own):.1f} | "
            f"{statistics.median(one.cpu_s for one in own):.1f} | {own[0].shards} | "
            f"{statistics.median(one.rows_per_s for one in own) / 1e6:.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    manifests(100_000)


if __name__ == "__main__":
    main()
