"""Collider rows for the benchmarks: made once, kept under .ddlflow/bench."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.samples.generators import plan, write_part
from ddlflow.data.shards.manifest import Manifest
from ddlflow.spec.pipeline import Data, Split

ROOT = Path(".ddlflow/bench").absolute()


def collider(rows: int) -> Path:
    """A folder of Parquet files with so many events."""
    folder = ROOT / f"collider-{rows}"
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_part, plan("collider", rows, folder)))
    return folder


def head_csv(rows: int) -> Path:
    """The first rows as one CSV file with a header."""
    import pyarrow.csv as pa_csv

    path = ROOT / f"collider-{rows}.csv"
    if not path.exists():
        table = pq.read_table(collider(rows))
        pa_csv.write_csv(table, path)
    return path


def shards(rows: int) -> Path:
    """A prepared data set of the collider's rows, nine tenths of them to train on."""
    folder = ROOT / f"shards-{rows}"
    if not (folder / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        spec = Data(
            source=str(collider(rows)), label="label", split=Split(validation=0.0, test=0.1)
        )
        with ProcessPoolExecutor() as pool:
            prepare(
                spec,
                "binary",
                data_root=ROOT,
                folder=folder,
                map=lambda function, items, name: pool.map(function, items),
            )
    Manifest.load(folder)
    return folder
