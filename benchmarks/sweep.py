"""A search against its trainings one after another, Ray Tune and GridSearchCV.

    make bench-sweep                              all of it, in some minutes
    python benchmarks/sweep.py --no-peers         only what needs no other packages
    python benchmarks/sweep.py --only batches     the table over sizes of a batch

5 folds x 20 learning rates of mlp [100] on 100,000 collider rows, one epoch, batch 128; then fewer
learning rates over other sizes of a batch. Ours is the stage `search` as `ddlflow search` runs it:
local engine, checkpoints, results and the table of trials on the storage, all metrics of the
objective for each training. One after another is the same stage with `sweep.fuse: never` and one
worker. The expert's loop trains one after another in one process, without anything around it.

The peers (benchmarks/peers) get the same rows standardised beforehand and in memory, compute the
AUROC alone, and do not count the start of their processes. They train fewer settings: what is
compared is seconds a training.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import numpy as np

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

PEERS = Path(__file__).with_name("peers")
BATCHES = {32: 4, 128: 8, 512: 8, 2048: 8, 16_384: 8}  # settings for each
Run = Callable[[], tuple[float, float]]
AUTO, ONE, APART, EXPERT = "2 workers", "1 worker", "one after another", "the expert's loop"
PIPELINE = """
name: sweep
data:
  source: {{use: collider, rows: {rows}, seed: 1}}
  label: label
  split: {{validation: 0.0, test: 0.1}}
model: {{use: mlp, hidden: [100]}}
train: {{objective: binary, epochs: 1, optimizer: {{use: adam, lr: 0.001}}}}
cv: {{folds: 5}}
search: {{method: grid, cv: true, space: {{train.optimizer.lr: [0.001]}}}}
"""
SITE = """
engine: {{use: local, workers: 2, threads: 1}}
device: cpu
storage: {storage}
"""


class Searches:
    """Our searches over one data set.

    Each search has a seed of its own, which a grid does not use, so that none is found done.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.done = 0
        (folder / "pipeline.yaml").write_text(PIPELINE.format(rows=round(rows * 10 / 9)))
        (folder / "site.yaml").write_text(SITE.format(storage=folder / "storage"))

    def session(self, *changes: str) -> Session:
        files = self.folder / "pipeline.yaml", self.folder / "site.yaml"
        return Session(load(str(files[0]), str(files[1]), changes), Screen(StringIO()))

    def seconds(self, session: Session, settings: int, batch_rows: int) -> tuple[float, float]:
        """Seconds a training, and the best AUROC."""
        self.done += 1
        rates = np.geomspace(1e-4, 1e-2, settings).tolist()
        request = self.session(
            f"search.space={{train.optimizer.lr: {rates}}}",
            f"search.seed={self.done}",
            f"train.batch_rows={batch_rows}",
            f"sweep.fuse={session.request.pipeline.sweep.fuse}",
        ).request
        session.use(request.pipeline)
        prepared = stages.prepare(session)
        began = time.perf_counter()
        found = sweeps.search(session, prepared)
        seconds = time.perf_counter() - began
        assert not found.cached
        assert found.value.trainings == 5 * settings
        assert found.value.statuses["done"] == settings
        return seconds / (5 * settings), found.value.best.score

    def cold(self, settings: int) -> tuple[float, float]:
        """The same in a session of its own: its workers start and import torch in the search."""
        with self.session() as session:
            return self.seconds(session, settings, 128)

    def rows(self) -> Path:
        """The training rows for the peers, standardised."""
        with self.session() as session:
            folder = Path(stages.prepare(session).folder)
        shards = Manifest.load(folder).shards_of("train")
        parts = [map_shard(folder / shard.path) for shard in shards]
        features = np.concatenate([part["features"] for part in parts])
        features = (features - features.mean(0)) / features.std(0)
        label = np.concatenate([part["label"] for part in parts])
        order = np.random.default_rng(7).permutation(len(label))
        path = self.folder / "rows.npz"
        np.savez(path, features=features[order].astype(np.float32), label=label[order])
        return path


def peers(python: str, rows: Path) -> Callable[..., Run]:
    """A peer's script, so many settings and more arguments -> what runs it."""

    def other(script: str, settings: int, *more: str) -> Run:
        command = [python, str(PEERS / script), str(rows), f"--settings={settings}", *more]

        def run() -> tuple[float, float]:
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if said.returncode:
                raise SystemExit(f"{script} failed:\n{said.stdout[-2000:]}\n{said.stderr[-4000:]}")
            found = json.loads(said.stdout.splitlines()[-1])
            return found["seconds"] / found["trainings"], found["auroc"]

        return run

    return other


def take_turns(contestants: dict[str, Run], turns: int) -> dict[str, list[float]]:
    """Seconds a training of each, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            found, auroc = run()
            seconds[name].append(found)
            print(f"    {name}: {found:.4f} s a training, best AUROC {auroc:.4f}", flush=True)
    return seconds


def ratio(others: Sequence[float], ours: Sequence[float]) -> str:
    """How many times as fast ours is: the median of the turns, and the least and the greatest."""
    found = sorted(other / our for other, our in zip(others, ours, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def against_others(
    ours: Searches, sessions: dict[str, Session], arguments: argparse.Namespace
) -> None:
    """The headline: batch 128."""
    settings, few = arguments.settings, arguments.peer_settings

    def of(name: str) -> Run:
        return lambda: ours.seconds(sessions[name], settings, 128)

    contestants = {
        "ours, its workers started in it": lambda: ours.cold(settings),
        "ours, its workers started before": of(AUTO),
        APART: of(APART),
    }
    if not arguments.no_peers:
        other = peers(arguments.peers, ours.rows())
        contestants |= {
            EXPERT: other("expert.py", few),
            "Ray Tune": other("ray_tune.py", few),
            "Ray Tune, actors reused": other("ray_tune.py", 2 * few, "--reuse"),
            "skorch in GridSearchCV": other("grid_search.py", 2 * few),
        }
    print(f"5 folds x {settings} settings, batch 128", flush=True)
    seconds = take_turns(contestants, arguments.turns)
    cold, warm, *_ = seconds.values()
    for name, found in seconds.items():
        print(
            f"{name}: {statistics.median(found):.4f} s a training; ours is {ratio(found, cold)} "
            f"times as fast, with its workers started before {ratio(found, warm)}",
            flush=True,
        )


def over_batches(
    ours: Searches, sessions: dict[str, Session], arguments: argparse.Namespace
) -> None:
    """Fused, in two processes and in one, against one after another."""
    other = None if arguments.no_peers else peers(arguments.peers, ours.rows())
    for batch, most in BATCHES.items():
        number = min(most, arguments.settings)

        def of(name: str, number: int = number, batch: int = batch) -> Run:
            return lambda: ours.seconds(sessions[name], number, batch)

        print(f"5 folds x {number} settings, batch {batch:,}", flush=True)
        contestants = {name: of(name) for name in sessions}
        if other is not None:
            contestants[EXPERT] = other("expert.py", 2, f"--batch={batch}")
        found = take_turns(contestants, arguments.turns)
        print(f"batch {batch:,}", flush=True)
        for name, seconds in found.items():
            print(
                f"  {name}: {statistics.median(seconds):.4f} s a training; "
                f"2 workers {ratio(seconds, found[AUTO])} times as fast, "
                f"1 worker {ratio(seconds, found[ONE])}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--peer-settings", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="their Python")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", choices=("others", "batches"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddlflow-bench-") as made, ExitStack() as stack:
        ours = Searches(Path(made), arguments.rows)
        sessions = {
            AUTO: stack.enter_context(ours.session()),
            ONE: stack.enter_context(ours.session("engine.workers=1")),
            APART: stack.enter_context(ours.session("engine.workers=1", "sweep.fuse=never")),
        }
        for session in sessions.values():
            ours.seconds(session, 2, 2048)  # starts the workers
        if arguments.only != "batches":
            against_others(ours, sessions, arguments)
        if arguments.only != "others":
            over_batches(ours, sessions, arguments)


if __name__ == "__main__":
    main()
