"""Text to shards: parsed in ranges by all workers, or first turned into Parquet by a library.

One file of CSV (numbers; or numbers beside quoted texts with line breaks) or of JSON lines, two
workers. A library turns the file into Parquet or Arrow with as many threads; then it is prepared
from there. The ways take turns; wall time and processor time of all processes are compared with
the first way's of the same turn.

    python benchmarks/text.py [--megabytes 300] [--turns 5] [KIND ...]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

KINDS = ("numbers.csv", "words.csv", "rows.jsonl")
WORKERS = 2
GROUP_ROWS = 262_144
WORDS = np.array(["alpha", "bravo, charlie", 'delta "x"', "echo\nfoxtrot", "golf", "NA", ""])

Way = Callable[[Path, Path], None]  # source, target


def rows_of(kind: str, rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {"label": random.integers(0, 2, rows)}
    if kind == "numbers.csv":
        return pa.table(columns | {f"f{i}": random.normal(size=rows) for i in range(28)})
    columns |= {f"f{i}": np.round(random.normal(size=rows) * 100, 3) for i in range(10)}
    columns |= {f"i{i}": random.integers(0, 10**6, rows) for i in range(4)}
    return pa.table(columns | {f"s{i}": random.choice(WORDS, rows) for i in range(4)})


def source_of(kind: str, megabytes: int) -> Path:
    """A file of about so many megabytes, made once."""
    path = data.ROOT / f"{megabytes}-{kind}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(".making")
    with making.open("wb") as file:
        for part in range(10_000):
            table = rows_of(kind, 50_000, part)
            if kind.endswith("jsonl"):
                lines = (json.dumps(row) + "\n" for row in table.to_pylist())
                file.write("".join(lines).encode())
            else:
                pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=part == 0))
            if file.tell() > megabytes * 1_000_000:
                break
    making.rename(path)
    return path


# ---- ways ---------------------------------------------------------------------------------------


def _duckdb(source: Path) -> tuple[object, str]:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {WORKERS}")
    if source.suffix == ".jsonl":  # any row may bring a key: all are looked at
        reader = f"read_json('{source}', format = 'newline_delimited', sample_size = -1)"
    else:
        types = {"int64": "DOUBLE", "double": "DOUBLE", "string": "VARCHAR"}
        names = pa_csv.open_csv(source).schema
        columns = ", ".join(f"'{field.name}': '{types[str(field.type)]}'" for field in names)
        quoting = "delim = ',', quote = '\"', escape = '\"', nullstr = ['', 'NA']"
        reader = f"read_csv('{source}', auto_detect = false, header = true, "
        reader += f"columns = {{{columns}}}, {quoting})"
    return connection, reader


def duckdb_to_parquet(source: Path, target: Path) -> None:
    connection, reader = _duckdb(source)
    options = f"FORMAT parquet, COMPRESSION uncompressed, ROW_GROUP_SIZE {GROUP_ROWS}"
    copy = f"COPY (SELECT * FROM {reader}) TO '{target}' ({options})"
    connection.execute(copy)  # type: ignore[attr-defined]


def duckdb_to_arrow(source: Path, target: Path) -> None:
    connection, reader = _duckdb(source)
    found = connection.sql(f"SELECT * FROM {reader}")  # type: ignore[attr-defined]
    batches = found.to_arrow_reader(GROUP_ROWS)
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def pyarrow_to_parquet(source: Path, target: Path) -> None:
    batches = pa_csv.open_csv(
        source,
        pa_csv.ReadOptions(block_size=1 << 20),
        pa_csv.ParseOptions(newlines_in_values=True),
        pa_csv.ConvertOptions(strings_can_be_null=True),
    )
    with pq.ParquetWriter(target, batches.schema, compression="none", use_dictionary=False) as out:
        held: list[pa.RecordBatch] = []
        for batch in batches:
            held.append(batch)
            if sum(each.num_rows for each in held) >= GROUP_ROWS:
                out.write_table(pa.Table.from_batches(held))
                held = []
        if held:
            out.write_table(pa.Table.from_batches(held))


def polars_to_parquet(source: Path, target: Path) -> None:
    import polars

    if source.suffix == ".jsonl":
        frame = polars.scan_ndjson(source, infer_schema_length=None)
    else:
        frame = polars.scan_csv(source, null_values=["", "NA"], infer_schema_length=10_000)
    frame.sink_parquet(target, compression="uncompressed", row_group_size=GROUP_ROWS)


def ways(kind: str) -> dict[str, Way | None]:
    """What is compared: a library that makes ``target`` of ``source``, or None: ours alone."""
    found: dict[str, Way | None] = {"ours, nothing kept": None, "ours, first": None}
    found |= {"ours, again": None}
    found |= {"duckdb parquet": duckdb_to_parquet, "duckdb arrow": duckdb_to_arrow}
    if not kind.endswith("jsonl"):
        found["pyarrow parquet"] = pyarrow_to_parquet
    return found | {"polars parquet": polars_to_parquet}


# ---- measuring ----------------------------------------------------------------------------------


def prepare_rows(source: Path, pool: ProcessPoolExecutor, kept: Path | None = None) -> None:
    from ddlflow.data.prepare.prepare import prepare
    from ddlflow.data.sources import file_schema
    from ddlflow.spec.pipeline import Data
    from ddlflow.store.folder import FolderStore

    file_schema._json_types.cache_clear()  # as in a command of its own
    out = data.ROOT / "out"
    shutil.rmtree(out, ignore_errors=True)
    prepare(
        Data(source=str(source), label="label"),
        "binary",
        data_root=data.ROOT,
        folder=out,
        map=lambda function, items, name: pool.map(function, items),
        converted=None if kept is None else FolderStore(kept),
    )


def warm(_: int) -> None:
    import ddlflow.data.prepare.prepare  # noqa: F401

    time.sleep(0.3)


def processor_s(pool: ProcessPoolExecutor) -> float:
    """Seconds of this process and of the pool's."""
    ticks = 0
    for number in [os.getpid(), *pool._processes]:
        fields = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def one(name: str, way: Way | None, source: Path, pool: ProcessPoolExecutor) -> tuple[float, float]:
    """Seconds of wall and processor time from the text to the shards."""
    kept = data.ROOT / "kept"
    if name == "ours, first":
        shutil.rmtree(kept, ignore_errors=True)
    began, spent = time.perf_counter(), processor_s(pool)
    if way is None:
        prepare_rows(source, pool, None if name == "ours, nothing kept" else kept)
    else:
        target = data.ROOT / f"target.{name.rpartition(' ')[2]}"
        way(source, target)
        prepare_rows(target, pool)
    return time.perf_counter() - began, processor_s(pool) - spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("kinds", nargs="*", default=KINDS, help=", ".join(KINDS))
    asked = parser.parse_args()
    pa.set_cpu_count(WORKERS)
    os.environ["POLARS_MAX_THREADS"] = str(WORKERS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        list(pool.map(warm, range(WORKERS * 2)))
        for kind in asked.kinds:
            source = source_of(kind, asked.megabytes)
            compared = ways(kind)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
            for _ in range(asked.turns + 1):
                for name, way in compared.items():
                    times[name].append(one(name, way, source, pool))
            base = times["ours, nothing kept"][1:]
            for name, found in times.items():
                pairs = list(zip(found[1:], base, strict=True))  # the first turn warms up
                ratios = [[each[k] / own[k] for each, own in pairs] for k in (0, 1)]
                wall, spent = map(statistics.median, ratios)
                print(
                    f"{kind:12} {name:20} wall x{wall:.2f} ({min(ratios[0]):.2f} to "
                    f"{max(ratios[0]):.2f})  processor x{spent:.2f} ({min(ratios[1]):.2f} to "
                    f"{max(ratios[1]):.2f}), {statistics.median(own[1] for own in found[1:]):.2f} s"
                )


if __name__ == "__main__":
    main()
