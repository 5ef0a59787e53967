"""A tiny prepared data set a kind of label, trainings of it, and ranks that share this process."""

import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed
from pydantic import TypeAdapter

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.rank_protocol import event_line
from ddlflow.spec.pipeline import Data, Model, Training
from ddlflow.train import training
from ddlflow.train.events import Event, to_said
from ddlflow.train.job import Job

ROWS = 700
CPU = torch.device("cpu")
MODEL: TypeAdapter[Model] = TypeAdapter(Model)
FEATURES = {"numbers": ["a", "b"], "all": ["a", "b", "town"], "categories": ["town"]}


def table(labels: str) -> pa.Table:
    """A label that two numbers and a category explain well, with some numbers missing."""
    random = np.random.default_rng(3)
    a, b = random.standard_normal((2, ROWS)).astype(np.float32)
    town = random.choice(["Bonn", "Rome", "Turin"], ROWS, p=[0.5, 0.3, 0.2])
    score = 2 * a - b + np.where(town == "Rome", 1.5, -0.5) + 0.3 * random.standard_normal(ROWS)
    values = {
        "binary": lambda: (score > 0).astype(np.int64),
        "multiclass": lambda: np.array(["low", "mid", "top"])[np.digitize(score, [-1, 1])],
        "regression": lambda: (10 + 3 * score).astype(np.float64),
    }
    b[random.random(ROWS) < 0.05] = np.nan
    return pa.table({"y": values[labels](), "a": a, "b": b * 100 + 7, "town": town})


@dataclass
class Ended:
    """What a training gave: the result (None if it did not end) and its events."""

    result: Any
    events: list[dict[str, Any]]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


@dataclass
class Bench:
    """A prepared data set and trainings of it in this process."""

    dataset: Path
    data: dict[str, Any]
    labels: Any
    manifest: Manifest
    source: pa.Table

    def job(
        self,
        folder: Path,
        *,
        model: dict[str, Any] | None = None,
        virtual_ranks: int = 1,
        code: Path | None = None,
        **train: Any,
    ) -> Job:
        standard = {"objective": self.labels, "epochs": 3, "batch_rows": 64, "optimizer": ADAM}
        return Job(
            dataset=str(self.dataset),
            folder=str(folder),
            model=MODEL.validate_python(model or {"use": "mlp", "hidden": [8]}),
            train=Training(**(standard | train)),
            data=self.data,
            labels=self.labels,
            virtual_ranks=virtual_ranks,
            threads=1,
            device="cpu",
            code=str(code) if code else None,
        )

    def train(
        self,
        folder: Path,
        *,
        must_stop: Callable[[], bool] = lambda: False,
        rank: int = 0,
        world: int = 1,
        group: Any = None,
        **more: Any,
    ) -> Ended:
        """Runs a rank. What it raises carries the events so far as ``events``."""
        ended = Ended(None, [])

        def tell(event: Event) -> None:
            ended.events.append(json.loads(event_line(to_said(event))))

        job = self.job(folder, **more)
        try:
            result = training.run(job, rank, world, group, CPU, tell=tell, must_stop=must_stop)
            ended.result = {} if result is None else result.to_json()
        except Exception as error:
            error.events = ended.events  # type: ignore[attr-defined]
            raise
        return ended


ADAM = {"use": "adam", "lr": 0.02}


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk is like: the kernel refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def files_of_at_most() -> Callable[[int], Any]:
    """``with files_of_at_most(bytes):`` no larger file can be written."""
    return _files_of_at_most


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """``bench("binary", "all")``: made once for each kind of label and choice of features."""
    known: dict[tuple[str, str], Bench] = {}

    def make(labels: str = "binary", features: str = "numbers") -> Bench:
        if (labels, features) not in known:
            root = tmp_path_factory.mktemp("data")
            source = table(labels)
            pq.write_table(source, root / "t.parquet", row_group_size=256)
            spec = Data(source="t.parquet", label="y", features=FEATURES[features])
            folder = root / "dataset"
            manifest = prepare(
                spec, labels, data_root=root, folder=folder, map=lambda f, items, _: map(f, items)
            )
            data = spec.model_dump(mode="json")
            known[labels, features] = Bench(folder, data, labels, manifest, source)
        return known[labels, features]

    return make


# ---- several ranks in one process ----------------------------------------------------------


@dataclass
class Meeting:
    """Stands in for a process group: what it gathers, ranks in threads hand each other.

    One rank computes at a time (torch's generator is the process's), and all wait for each other
    in a collective, as processes would.
    """

    world: int
    baton: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world)
        self.given: list[Any] = [None] * self.world

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.given[rank] = tensor.detach().clone()
        self.baton.release()
        try:
            self.barrier.wait(60)
            everyone = list(self.given)
            self.barrier.wait(60)
        finally:
            self.baton.acquire()
        return everyone


def all_gather(out: torch.Tensor, mine: torch.Tensor, group: tuple[Meeting, int]) -> None:
    meeting, rank = group
    everyone = meeting.exchange(rank, mine)
    # As gloo does it: every rank has to bring as much, of the same type.
    assert {(t.shape, t.dtype) for t in everyone} == {(mine.shape, mine.dtype)}
    out.copy_(torch.cat([t.reshape(-1) for t in everyone]).view_as(out))


def all_to_all(out: torch.Tensor, mine: torch.Tensor, group: tuple[Meeting, int]) -> None:
    meeting, rank = group
    everyone = meeting.exchange(rank, mine)
    assert {(t.shape, t.dtype) for t in everyone} == {(mine.shape, mine.dtype)}
    out.copy_(torch.stack([t[rank] for t in everyone]))


def all_reduce(tensor: torch.Tensor, group: tuple[Meeting, int]) -> None:
    meeting, rank = group
    tensor.copy_(torch.stack(meeting.exchange(rank, tensor)).sum(0))


def broadcast(tensor: torch.Tensor, src: int, group: tuple[Meeting, int]) -> None:
    meeting, rank = group
    tensor.copy_(meeting.exchange(rank, tensor)[src])


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``ranks(world, function)`` runs ``function(rank, group)`` as each rank; their results."""
    for name in ("all_gather_single", "all_gather_into_tensor"):
        monkeypatch.setattr(torch.distributed, name, all_gather, raising=False)
    monkeypatch.setattr(torch.distributed, "all_to_all_single", all_to_all)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)

    def run(world: int, function: Callable[[int, Any], Any]) -> list[Any]:
        meeting = Meeting(world)
        results: list[Any] = [None] * world
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            torch.set_num_threads(1)  # each thread has a number of its own
            with meeting.baton:
                try:
                    results[rank] = function(rank, (meeting, rank))
                except threading.BrokenBarrierError:
                    pass  # the one who left first says why
                except BaseException as error:
                    errors.append(error)
                    meeting.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    return run
