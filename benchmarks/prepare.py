"""Sources to shards against pyarrow reading the same source and writing the same number of bytes.

pyarrow reads each part, casts it to float32 and writes it as an uncompressed Arrow IPC file: no
splits, no shuffle, no statistics, no hashes. Both use all cores: pyarrow by a process a core over
the files (its own threads gave less), ours by the local engine. They take turns.

    python benchmarks/prepare.py [--rows 5000000] [--turns 3]
"""

import argparse
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

FORMATS = ("parquet float32", "parquet float32 snappy", "parquet float64 snappy", "csv")


def float32(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([pa.field(name, pa.float32()) for name in table.column_names]))


def rewrite(task: tuple[Path, Path]) -> int:
    """One file read and written by pyarrow alone."""
    source, target = task
    if source.suffix == ".csv":
        types = dict.fromkeys(pq.read_schema(source.with_suffix(".parquet")).names, pa.float32())
        options = pa_csv.ConvertOptions(column_types=types)
        table = pa_csv.read_csv(
            source, pa_csv.ReadOptions(use_threads=False), convert_options=options
        )
    else:
        table = float32(pq.read_table(source, use_threads=False))
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return table.num_rows


def bare(files: list[Path], pool: ProcessPoolExecutor) -> float:
    out = data.ROOT / "bare"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    began = time.perf_counter()
    rows = sum(pool.map(rewrite, [(file, out / f"{file.stem}.arrow") for file in files]))
    return rows / (time.perf_counter() - began)


def ours(source: Path, rows: int, engine: object) -> float:
    from ddlflow.data.prepare.prepare import prepare
    from ddlflow.spec.pipeline import Data

    out = data.ROOT / "ours"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    spec = Data(source=str(source), label="label")
    began = time.perf_counter()
    prepare(
        spec,
        "binary",
        data_root=data.ROOT,
        folder=out,
        map=lambda function, items, name: engine.map(function, items),  # type: ignore[attr-defined]
    )
    return rows / (time.perf_counter() - began)


def source_of(kind: str, rows: int) -> Path:
    """The same rows in another format, made once, a file a part."""
    base = data.collider(rows)
    if kind == "parquet float32":
        return base
    folder = data.ROOT / f"{kind.replace(' ', '-')}-{rows}"
    if not folder.exists():
        folder.mkdir()
        for file in sorted(base.glob("*.parquet")):
            table = pq.read_table(file)
            if kind == "csv":
                pa_csv.write_csv(table, folder / f"{file.stem}.csv")
            elif kind == "parquet float32 snappy":  # pyarrow's defaults
                pq.write_table(table, folder / file.name)
            else:
                wide = pa.schema([pa.field(name, pa.float64()) for name in table.column_names])
                pq.write_table(table.cast(wide), folder / file.name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    from ddlflow.engines.local import LocalEngine
    from ddlflow.machine import cores as available_cores

    cores = available_cores()
    context = multiprocessing.get_context("spawn")
    print(f"{options.rows:,} rows, {cores} processes; M rows/s, median of {options.turns} turns")
    print("source | pyarrow | ours | ours/pyarrow, median (least to most)")
    with LocalEngine(slots=cores, threads=1) as engine, ProcessPoolExecutor(cores, context) as pool:
        for kind in FORMATS:
            source = source_of(kind, options.rows)
            pattern = "*.csv" if kind == "csv" else "*.parquet"
            if kind == "csv":  # the schema for pyarrow's own reading
                first = next(data.collider(options.rows).glob("*.parquet"))
                for file in source.glob("*.csv"):
                    names = file.with_suffix(".parquet")
                    if not names.exists():
                        pq.write_table(pq.read_table(first).slice(0, 0), names)
            files = sorted(source.glob(pattern))
            location = source / "*.csv" if kind == "csv" else source
            pairs = []
            for turn in range(options.turns + 1):
                pair = bare(files, pool), ours(location, options.rows, engine)
                if turn:  # the first warms the page cache and the workers
                    pairs.append(pair)
            ratios = sorted(o / b for b, o in pairs)
            middle = [statistics.median(column) / 1e6 for column in zip(*pairs, strict=True)]
            print(
                f"{kind} | {middle[0]:.2f} | {middle[1]:.2f} | {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
