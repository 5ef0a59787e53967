"""Real trainings whose ranks and workers are killed, stopped or raise: the same model all the same.

The short form of the chaos suite: seeded, on the local engine and on Dask.
"""

import contextlib
import io
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from distributed import Client

from ddlflow.errors import EngineError, TrainingError
from ddlflow.report.screen import Screen
from ddlflow.runs import launch, stages
from ddlflow.runs.events import TrainEvent
from ddlflow.runs.results import TrainAttempt
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.load import load
from ddlflow.train.events import DigestMarked, EpochEnded
from ddlflow.train.rank import NAME as RANK

ROWS = 2_000
PIPELINE = {
    "name": "chaos",
    "data": {"source": "t.parquet", "label": "y", "split": {"validation": 0.1, "test": 0}},
    "model": {"use": "mlp", "hidden": [8], "dropout": 0.3},
    "train": {
        "objective": "binary",
        "epochs": 8,
        "batch_rows": 64,
        "virtual_ranks": 4,
        "digest_every": 5,
        "checkpoint_every_s": 0.2,
        "optimizer": {"use": "adam", "lr": 0.01},
    },
}
# A model that takes its time, so that there is a moment to hit it, and does what a folder says.
NET = """
import os
import time
from pathlib import Path

import torch


class Net(torch.nn.Module):
    def __init__(self, num_features, num_outputs, folder, pause_s=0.004):
        super().__init__()
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(num_features, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, num_outputs)
        )
        self.folder, self.pause_s = Path(folder), pause_s

    def forward(self, x):
        time.sleep(self.pause_s)
        if self.training and (self.folder / "raise-once").exists():
            (self.folder / "raise-once").unlink(missing_ok=True)
            raise ValueError("this once")
        if self.training and (self.folder / "die").exists():
            os.kill(os.getpid(), 9)
        if self.training and x.abs().max() > 9 and (self.folder / "raise-always").exists():
            time.sleep(1.5)  # until a beat has told of the step
            raise ValueError("this\\nalways")
        if self.training and (self.folder / "nan").exists():
            x = x * float("nan")
        if not self.training and (self.folder / "slow-validation").exists():
            time.sleep(5)
        return self.inner(x).squeeze(-1)
"""
ids = itertools.count()


class Bench:
    """A prepared data set on the local engine, and trainings of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(4)
        a, b = rng.standard_normal((2, ROWS))
        a[ROWS // 2] = 20.0  # the row that `raise-always` means
        y = (a - b + 0.5 * rng.standard_normal(ROWS) > 0).astype(int)
        (folder / "data").mkdir()
        pq.write_table(pa.table({"a": a, "b": b, "y": y}), folder / "data" / "t.parquet")
        (folder / "pipeline").mkdir()
        (folder / "pipeline" / "net.py").write_text(NET)
        model = {"use": "net:Net", "folder": str(folder)}
        values = PIPELINE | {"model": model}
        (folder / "pipeline" / "pipeline.yaml").write_text(yaml.safe_dump(values))
        with self.session(io.StringIO()) as session:
            self.prepared: Stage = stages.prepare(session)

    def session(
        self, said: io.StringIO, *changes: str, use: str = "local", **engine: Any
    ) -> Session:
        site = {
            "engine": {"use": use, "workers": 2, "threads": 1, **engine},
            "device": "cpu",
            "data_root": str(self.folder / "data"),
            "storage": str(self.folder / "storage"),
        }
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(site))
        request = load(str(self.folder / "pipeline"), str(path), changes)
        return Session(request, Screen(said))

    def train(
        self,
        *changes: str,
        disturb: Callable[["Watch"], None] | None = None,
        session: Session | None = None,
        **engine: Any,
    ) -> "Ended":
        """Trains anew; what goes wrong comes as ``error``."""
        said = io.StringIO()
        told: list[TrainEvent] = []
        watch = Watch(self.folder / "storage", told)
        thread = threading.Thread(target=disturb or (lambda _: None), args=(watch,))
        ended = Ended(told, said, watch)
        with session or self.session(said, *changes, **engine) as opened:
            thread.start()
            try:
                done = stages.train(opened, self.prepared, watch.tell, again=f"case {next(ids)}")
                ended.value = done.value
            except (TrainingError, EngineError) as error:
                ended.error = error
            finally:
                watch.over.set()
                thread.join()
        return ended


class Ended:
    """How a training ended."""

    def __init__(self, told: list[TrainEvent], said: io.StringIO, watch: "Watch") -> None:
        self.told, self.said, self.watch = told, said, watch
        self.value: Any = None  # a TrainResult, unless it failed
        self.error: Exception | None = None

    @property
    def lines(self) -> list[str]:
        """What the user saw of attempts."""
        return [line for line in self.said.getvalue().splitlines() if "attempt" in line]


class Watch:
    """What a disturber sees of a training under way."""

    def __init__(self, storage: Path, told: list[TrainEvent]) -> None:
        self._storage, self._told = storage, told
        self.over = threading.Event()
        self.hit_at = 0.0
        self.recovered_s = float("nan")  # from the hit to the first step of the next attempt

    def tell(self, event: TrainEvent) -> None:
        self._told.append(event)
        epochs = isinstance(event, EpochEnded | DigestMarked)
        if epochs and self.hit_at and self.recovered_s != self.recovered_s:
            attempts = [e for e in self._told if isinstance(e, TrainAttempt) and e.ended_by is None]
            if len(attempts) > 1:
                self.recovered_s = time.monotonic() - self.hit_at

    def wait_for_checkpoint(self) -> None:
        """Returns once a step is done, and its checkpoint is on the disk."""
        began = time.time()
        self.wait_for(
            lambda: any(
                path.stat().st_mtime > began
                for path in self._storage.glob("reproduce/*/checkpoints/*.ckpt")
            )
        )

    def wait_for(self, seen: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not self.over.is_set():
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that was just replaced
                if seen():
                    return
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def ranks(self) -> list[psutil.Process]:
        """The rank processes under this one, in no order."""
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.name() == RANK:
                    found.append(child)
        return found

    def hit(self, process: psutil.Process, number: int) -> None:
        self.hit_at = time.monotonic()
        process.send_signal(number)


def hit_a_rank(number: int, seed: int, after_s: float = 0.0) -> Callable[[Watch], None]:
    """Sends a signal to a rank at a random moment after the first checkpoint."""

    def disturb(watch: Watch) -> None:
        chance = random.Random(seed)
        watch.wait_for_checkpoint()
        time.sleep(after_s + chance.uniform(0, 0.6))
        ranks = sorted(watch.ranks(), key=lambda process: process.pid)
        watch.hit(chance.choice(ranks), number)

    return disturb


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> str:
    """The digest that every disturbed training has to end with; of one rank."""
    done = bench.train("model.pause_s=0", workers=1)
    assert [a.world for a in done.value.attempts] == [1]
    assert done.value.attempts[0].ended_by is None
    digest: str = done.value.model_digest
    return digest


@pytest.fixture
def mark(bench: Bench) -> Iterator[Callable[[str], Path]]:
    """Makes a file that the model looks for; gone after the test."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(bench.folder / name)
        made[-1].touch()
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def test_a_rank_is_killed(bench: Bench, undisturbed: str) -> None:
    ended = bench.train(disturb=hit_a_rank(signal.SIGKILL, 1))
    assert ended.error is None
    assert ended.value.model_digest == undisturbed
    first, second = ended.value.attempts
    assert (first.number, first.world, first.from_step) == (1, 2, 0)
    assert re.fullmatch(
        r"rank [01] on 127\.0\.0\.1( after step \d+)?: Killed: killed by signal 9 \(SIGKILL\); out "
        r"of memory\?",
        first.ended_by,
    )
    assert (second.number, second.world) == (2, 2)
    assert second.from_step > 0
    assert second.ended_by is None
    assert ended.lines == [f"train: attempt 1 ended: {first.ended_by}"]
    assert f"goes on from step {second.from_step}" in ended.said.getvalue()
    told = [event for event in ended.told if isinstance(event, TrainAttempt)]
    assert [(e.number, e.ended_by) for e in told] == [
        (1, None),
        (1, first.ended_by),
        (2, None),
    ]
    print(f"recovered after {ended.watch.recovered_s:.1f} s (local, killed rank)")


def test_a_rank_is_stopped_for_ever(bench: Bench, undisturbed: str) -> None:
    # Later than a beat after the first step: until then a rank may be silent for longer.
    disturb = hit_a_rank(signal.SIGSTOP, 3, after_s=1.2)
    ended = bench.train("model.pause_s=0.012", disturb=disturb, silence_s=2)
    assert ended.value.model_digest == undisturbed
    first, second = ended.value.attempts
    assert re.search(r": Hung: no sign of life for \d+ s$", first.ended_by)
    assert second.from_step > 0
    assert not ended.watch.ranks()  # the stopped one too
    print(f"recovered after {ended.watch.recovered_s:.1f} s (local, stopped rank)")


def test_a_rank_is_asked_to_stop_from_outside(bench: Bench, undisturbed: str) -> None:
    """As Kubernetes does when a machine is emptied."""
    ended = bench.train(disturb=hit_a_rank(signal.SIGTERM, 4))
    assert ended.error is None
    assert ended.value.model_digest == undisturbed
    assert "asked to stop from outside (SIGTERM)" in ended.value.attempts[0].ended_by


def test_user_code_that_raises_once(
    bench: Bench, undisturbed: str, mark: Callable[[str], Path]
) -> None:
    def disturb(watch: Watch) -> None:
        watch.wait_for_checkpoint()
        mark("raise-once")

    ended = bench.train(disturb=disturb)
    assert ended.value.model_digest == undisturbed
    first, second = ended.value.attempts
    assert first.ended_by.endswith(": ValueError: this once")
    assert second.from_step > 0


def test_user_code_that_raises_always_is_given_up_at_the_second_time(
    bench: Bench, mark: Callable[[str], Path]
) -> None:
    mark("raise-always")
    ended = bench.train(workers=1)
    assert isinstance(ended.error, TrainingError)
    said = str(ended.error)
    assert "\n" not in said
    line = NET[: NET.index('raise ValueError("this\\n')].count("\n") + 1
    assert re.fullmatch(
        r"The training failed after 2 attempts: rank 0 on 127\.0\.0\.1 after step \d+: ValueError: "
        rf"this always \(net\.py:{line} in forward\)\. Log: \S+\.log\. Correct net\.py\.",
        said,
    ), said
    assert "ValueError" in ended.error.__notes__[0]
    first, second = ended.lines
    assert first.partition("ended: ")[2] == second.partition("ended: ")[2]


def test_a_long_validation_is_no_hang(bench: Bench, mark: Callable[[str], Path]) -> None:
    mark("slow-validation")
    changes = ["train.epochs=2", "model.pause_s=0"]
    ended = bench.train(*changes, workers=1, silence_s=2, max_restarts=0)
    assert ended.error is None


def test_no_restart_is_allowed(bench: Bench) -> None:
    ended = bench.train(disturb=hit_a_rank(signal.SIGKILL, 5), max_restarts=0)
    assert isinstance(ended.error, TrainingError)
    assert "Killed" in str(ended.error)
    assert str(ended.error).endswith("The same command goes on from the last checkpoint.")
    assert len(ended.lines) == 1


def test_restarts_count_from_the_last_new_checkpoint_on(bench: Bench, undisturbed: str) -> None:
    """A training of days may lose a worker every night."""

    def disturb(watch: Watch) -> None:
        for _ in range(3):
            watch.wait_for_checkpoint()
            if ranks := watch.ranks():
                watch.hit(ranks[0], signal.SIGKILL)

    slowly = "model.pause_s=0.02"
    ended = bench.train(slowly, disturb=disturb, workers=1, max_restarts=1)
    assert ended.error is None
    assert ended.value.model_digest == undisturbed
    steps = [attempt.saved_step for attempt in ended.value.attempts]
    assert len(steps) == 4
    assert steps == sorted(set(steps))


def test_attempts_that_come_no_further_end(bench: Bench, mark: Callable[[str], Path]) -> None:
    def disturb(watch: Watch) -> None:
        watch.wait_for_checkpoint()
        mark("die")

    ended = bench.train("model.pause_s=0.02", disturb=disturb, workers=1, max_restarts=2)
    assert isinstance(ended.error, TrainingError)
    assert re.match(
        r"The training failed after 3 attempts, 2 restarts without a new checkpoint "
        r"\(engine\.max_restarts\): rank 0 on 127\.0\.0\.1 after step \d+: Killed",
        str(ended.error),
    )


def test_a_loss_that_is_not_finite_would_be_so_again(
    bench: Bench, mark: Callable[[str], Path]
) -> None:
    mark("nan")
    ended = bench.train(workers=1)
    assert isinstance(ended.error, TrainingError)
    assert str(ended.error).startswith("The loss is nan at epoch 1, step 1.")
    assert len(ended.lines) == 1


def test_a_dask_worker_is_killed_and_started_again(
    bench: Bench, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's own nanny brings it back, and the next attempt has as many ranks."""
    monkeypatch.setattr(launch, "COME_BACK_S", 60.0)  # a busy machine needs more than a moment

    def disturb(watch: Watch) -> None:
        watch.wait_for_checkpoint()
        # Of two workers each has a rank. Nannies start them by multiprocessing.
        children = psutil.Process().children(recursive=True)
        workers = [p for p in children if any("spawn_main" in word for word in p.cmdline())]
        watch.hit(min(workers, key=lambda p: p.pid), signal.SIGKILL)

    ended = bench.train(disturb=disturb, use="dask")
    assert ended.error is None
    assert ended.value.model_digest == undisturbed
    first, *_, last = ended.value.attempts
    assert "WorkerLost" in first.ended_by or "Killed" in first.ended_by
    assert (last.world, last.from_step > 0) == (2, True)
    print(f"recovered after {ended.watch.recovered_s:.1f} s (dask, killed worker)")


@pytest.mark.long
def test_workers_that_do_not_come_back(bench: Bench, undisturbed: str, tmp_path: Path) -> None:
    """Workers without a nanny: on with those left, and an error below ``min_workers``."""
    with dask_without_nannies(tmp_path, 3) as (address, workers, _):

        def disturb(watch: Watch) -> None:
            watch.wait_for_checkpoint()
            watch.hit(psutil.Process(workers.pop()), signal.SIGKILL)

        at = {"use": "dask", "address": address, "start_timeout_s": 10}
        ended = bench.train(disturb=disturb, workers=3, **at)
        assert ended.error is None
        assert ended.value.model_digest == undisturbed
        assert [a.world for a in ended.value.attempts] == [3, 2]
        print(f"recovered after {ended.watch.recovered_s:.1f} s (dask, one worker less)")

        ended = bench.train(disturb=disturb, workers=2, min_workers=2, **at)
        assert isinstance(ended.error, EngineError)
        assert str(ended.error) == (
            "1 worker left, and engine.min_workers is 2. Start more workers, and then the same "
            "command goes on from the last checkpoint."
        )


@pytest.mark.long
def test_a_worker_that_was_added_joins_at_the_next_attempt(bench: Bench, tmp_path: Path) -> None:
    """Where the number of workers is left open, and the training is large enough for more."""
    large = [
        "model={use: mlp, hidden: [200, 200]}",  # 445 MFLOP a step: enough for four ranks
        "train.batch_rows=1800",
        "train.epochs=400",
        "train.digest_every=20",
    ]
    alone = bench.train(*large, workers=1)
    with dask_without_nannies(tmp_path, 2) as (address, _, add):

        def disturb(watch: Watch) -> None:
            add()
            for _ in range(3):  # a worker that does not answer at once is left out for an attempt
                watch.wait_for_checkpoint()
                if len(watch.ranks()) == 2:
                    watch.hit(watch.ranks()[0], signal.SIGKILL)

        ended = bench.train(*large, disturb=disturb, use="dask", address=address, workers="auto")
    assert ended.error is None
    worlds = [attempt.world for attempt in ended.value.attempts]
    assert (worlds[0], worlds[-1]) == (2, 3)
    assert ended.value.model_digest == alone.value.model_digest


@contextlib.contextmanager
def dask_without_nannies(
    folder: Path, num_workers: int
) -> Iterator[tuple[str, list[int], Callable[[], None]]]:
    """A scheduler and workers by command line: its address, their processes, how to add one."""
    at = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    more = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--scheduler-file", str(at)]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:

        def start(command: list[str]) -> None:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))

        def add() -> None:
            """One more worker; returns once it is there."""
            start([*dask, "worker", "--name", str(len(processes)), *more])
            with Client(address) as client:
                client.wait_for_workers(len(processes) - 1, timeout=60)

        start([*scheduler, "--scheduler-file", str(at)])
        for number in range(num_workers):
            start([*dask, "worker", "--name", str(number), *more])
        try:
            give_up = time.monotonic() + 60
            while not at.exists() or not at.read_text().strip():
                assert time.monotonic() < give_up
                time.sleep(0.05)
            address = json.loads(at.read_text())["address"]
            with Client(address) as client:
                client.wait_for_workers(num_workers, timeout=60)
            yield address, [process.pid for process in processes[1:]], add
        finally:
            for process in processes:
                process.kill()
                process.wait()
