"""Inference against a bare loop that reads, predicts and writes.

The bare loop knows the model's class, holds its standardisation in two tensors, reads each Parquet
file with pyarrow, predicts and writes one Parquet file. Ours loads the model's folder, maps the
ranges over the local engine and commits each file by rename. Both use a process a core with one
thread each, and take turns.

    python benchmarks/infer.py [--rows 5000000] [--turns 3]
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data


def bare_file(task: tuple[Path, Path, Path]) -> int:
    """One file, as an expert's script would."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    source, target, model = task
    torch.set_num_threads(1)
    state = torch.load(model / "weights.pt", weights_only=True)
    names = json.loads((model / "model.json").read_text())["columns"]["numeric"]
    net = torch.nn.Sequential(torch.nn.Linear(28, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1))
    values = [value for name, value in state.items() if name.startswith("net.")]
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.data.copy_(value)
    table = pq.read_table(source, columns=names, use_threads=False)
    features = np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
    with torch.inference_mode():
        found = [
            torch.sigmoid(
                net((x - state["standardise.mean"]) * state["standardise.scale"]).squeeze(1)
            )
            for x in torch.from_numpy(features).split(2_048)
        ]
    probability = torch.cat(found).numpy()
    columns = {"prediction": (probability >= 0.5).astype(np.float64), "probability": probability}
    pq.write_table(pa.table(columns), target, compression="none", use_dictionary=False)
    return table.num_rows


def bare(files: list[Path], model: Path, pool: ProcessPoolExecutor) -> float:
    out = data.ROOT / "bare"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    began = time.perf_counter()
    rows = sum(pool.map(bare_file, [(file, out / file.name, model) for file in files]))
    return rows / (time.perf_counter() - began)


def ours(source: Path, model: Path, engine: object) -> float:
    from ddlflow.infer.predict import infer

    out = data.ROOT / "ours"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    done = infer(
        model,
        str(source),
        out,
        keys=[],
        data_root=data.ROOT,
        threads=1,
        map_over=lambda function, items, name: engine.map(function, items),  # type: ignore[attr-defined]
    )
    return done["rows"] / (time.perf_counter() - began)


def trained() -> Path:
    """A model's folder: one epoch over a few rows."""
    import torch

    from ddlflow.spec.pipeline import Data, MlpSection, Training
    from ddlflow.train.job import Job
    from ddlflow.train.training import run

    shards = data.shards(100_000)
    job = Job(
        dataset=str(shards),
        folder=tempfile.mkdtemp(prefix="ddlflow-bench-"),
        model=MlpSection(use="mlp", hidden=[100]),
        train=Training(objective="binary", epochs=1, batch_rows=1_000),
        data=Data(source="x", label="label").model_dump(mode="json"),
        labels="binary",
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    device = torch.device("cpu")
    run(job, 0, 1, None, device, tell=lambda event: None, must_stop=lambda: False)
    return Path(job.model_folder.location)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    from ddlflow.engines.local import LocalEngine
    from ddlflow.engines.resources import available_cores

    cores, model, source = available_cores(), trained(), data.collider(options.rows)
    files = sorted(source.glob("*.parquet"))
    context = multiprocessing.get_context("spawn")
    with LocalEngine(slots=cores, threads=1) as engine, ProcessPoolExecutor(cores, context) as pool:
        pairs = []
        for turn in range(options.turns + 1):
            pair = bare(files, model, pool), ours(source, model, engine)
            if turn:  # the first starts the processes and loads torch in them
                pairs.append(pair)
    ratios = sorted(o / b for b, o in pairs)
    middle = [statistics.median(column) / 1e6 for column in zip(*pairs, strict=True)]
    print(f"{options.rows:,} rows, {cores} processes; M rows/s, median of {options.turns} turns")
    print("bare | ours | ours/bare, median (least to most)")
    print(
        f"{middle[0]:.2f} | {middle[1]:.2f} | {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
