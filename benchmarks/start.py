"""What a command's start and a gang's start cost: alone, and with what stays warm.

Alone, each command has a Prefect server of its own and each rank is a fresh interpreter
(``DDLFLOW_PREFECT_IDLE_S=0``, ``DDLFLOW_FORK_SERVER=0``). Warm, commands share a server that runs
already, and ranks are forked. Both take turns. CPU seconds are of the command and of those of its
processes that it has waited for: they tell more than seconds on a machine that others use too.

    python benchmarks/start.py [--turns 3] [--parts quickstart cached recovery]
"""

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import data

ALONE = {"DDLFLOW_PREFECT_IDLE_S": "0", "DDLFLOW_FORK_SERVER": "0"}
WARM = {"DDLFLOW_PREFECT_IDLE_S": "60", "DDLFLOW_FORK_SERVER": "1"}
WAYS = {"alone": ALONE, "warm": WARM}
RANKS = 2


def command(folder: Path, *arguments: str, **variables: str) -> tuple[float, float]:
    """Seconds and CPU seconds of a command in a project."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ddlflow", *arguments],
        cwd=folder,
        env={**os.environ, "PREFECT_HOME": str(folder.parent / "prefect"), **variables},
        check=True,
        capture_output=True,
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def quickstart(place: Path, way: str) -> tuple[float, float]:
    """A project that has run nothing."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "project"
    command(folder.parent, "init", str(folder))
    return command(folder, "run", "quickstart", **WAYS[way])


def cached(place: Path, way: str) -> tuple[float, float]:
    """A project whose stages all stand, whichever way they were made."""
    folder = place / "kept"
    if not folder.exists():
        command(place, "init", str(folder))
        command(folder, "run", "quickstart", **WARM)
    return command(folder, "run", "quickstart", **WAYS[way])


def recovery(place: Path, way: str) -> tuple[float, float]:
    """From the death of a rank to the next step of the gang that goes on in its place.

    Returns:
        The seconds, and those from the second gang's start on.
    """
    from ddlflow.engines import GangEvent, GangJob
    from ddlflow.engines.local import LocalEngine
    from ddlflow.rank_protocol import RankSaid, RankStarted
    from ddlflow.spec.pipeline import MlpSection, Training
    from ddlflow.train.job import Job
    from ddlflow.train.rank import PRELOAD

    os.environ |= WAYS[way]
    made = tempfile.mkdtemp(dir=place)
    train = Training(
        objective="binary",
        epochs=1000,
        batch_rows=1400,
        checkpoint_every_s=0.2,
        early_stopping=None,
    )
    job = Job(
        dataset=str(data.shards(100_000)),
        folder=made,
        model=MlpSection(use="mlp", hidden=[100]),
        train=train,
        data={},
        labels="binary",
        virtual_ranks=RANKS,
        threads=1,
        device="cpu",
    )
    gang = GangJob(
        "ddlflow.train.rank", job.to_json(), 1, f"{made}/logs", {}, (), 120, preload=PRELOAD
    )
    pids: dict[int, int] = {}
    moments: dict[str, float] = {}
    stop = threading.Event()

    def first(heard: GangEvent) -> None:
        if isinstance(heard.event, RankStarted):
            pids[heard.rank] = heard.event.pid
        if isinstance(heard.event, RankSaid) and heard.event.name == "saved" and not moments:
            moments["death"] = time.monotonic()
            os.kill(pids[1], signal.SIGKILL)

    def second(heard: GangEvent) -> None:
        named = heard.event.name if isinstance(heard.event, RankSaid) else ""
        if named in {"progress", "epoch"} and "step" not in moments:
            moments["step"] = time.monotonic()
            stop.set()

    with LocalEngine(slots=RANKS, threads=1) as engine:
        engine.gang(gang, RANKS, on_event=first)
        began = time.monotonic()
        engine.gang(gang, RANKS, on_event=second, stop=stop)
    return moments["step"] - moments["death"], moments["step"] - began


PARTS: dict[str, tuple[Callable[[Path, str], tuple[float, float]], str]] = {
    "quickstart": (quickstart, "CPU s"),
    "cached": (cached, "CPU s"),
    "recovery": (recovery, "of it s from the start of the next gang"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddlflow-bench-", ignore_cleanup_errors=True) as folder:
        for name in options.parts:
            measure, second = PARTS[name]
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(options.turns):
                for way in WAYS:
                    found[way].append(measure(Path(folder), way))
            for way, pairs in found.items():
                seconds, other = (statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"{name}, {way}: {seconds:.1f} s, {other:.1f} {second}", flush=True)
            ratios = sorted(warm[0] / alone[0] for alone, warm in zip(*found.values(), strict=True))
            print(
                f"{name}, warm/alone: {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
