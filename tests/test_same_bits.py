"""One setting, one model: any number of workers, any engine, killed and started again or not.

These runs use the real engines and real processes; the fine grain (every world, every moment of a
stop) is tested in tests/train with ranks that share a process.
"""

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.data.prepare import small_ranges
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.result_json import to_json
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.train.rank import NAME as RANK
from ddlflow.train.saved.checkpoint import step_of

ROWS = 3000
PIPELINE = {
    "name": "same-bits",
    "data": {"source": "t", "label": "y", "missing": "impute"},
    "model": {"use": "mlp", "hidden": [16], "dropout": 0.3, "batch_norm": True},
    "train": {
        "objective": "binary",
        "epochs": 20,
        "batch_rows": 130,
        "virtual_ranks": 4,
        "digest_every": 50,
        "checkpoint_every_s": 0.2,
        "optimizer": {"use": "adam", "lr": 0.01},
        "early_stopping": {"patience": 50},
    },
}

# What `ddlflow run` does up to the trained model, as a process that can be killed.
COMMAND = """
import sys
from ddlflow.data.prepare import small_ranges
from ddlflow.runs import stages
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.train.rank import NAME as RANK
from ddlflow.spec.load import load

small_ranges.SMALL = 10**9  # none is: else the files would share one shard
with Session(load("pipeline.yaml", sys.argv[1], sys.argv[2:]), Screen()) as session:
    stages.train(session, stages.prepare(session))
"""


class Project:
    """A folder with a source and a pipeline; each site has a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data" / "t").mkdir(parents=True)
        random = np.random.default_rng(8)
        for number in range(3):
            a, b = random.standard_normal((2, ROWS // 3))
            town = random.choice(["Bonn", "Rome", "Turin"], ROWS // 3)
            y = (a - b + (town == "Rome") + 0.5 * random.standard_normal(ROWS // 3) > 0).astype(int)
            b[random.random(ROWS // 3) < 0.05] = np.nan
            table = pa.table({"a": a, "b": b, "town": town, "y": y})
            pq.write_table(table, folder / "data" / "t" / f"{number}.parquet", row_group_size=250)
        (folder / "command.py").write_text(COMMAND)
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE))

    def site(self, storage: str, use: str, workers: int) -> Path:
        values = {
            "engine": {"use": use, "workers": workers, "threads": 1},
            "device": "cpu",
            "data_root": str(self.folder / "data"),
            "storage": str(self.folder / storage),
        }
        path = self.folder / f"{storage}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def run(self, storage: str, use: str, workers: int, *changes: str) -> dict[str, Any]:
        """Prepares and trains on an engine of its own; what is said on the screen comes too."""
        screen = io.StringIO()
        site = str(self.site(storage, use, workers))
        request = load(str(self.folder / "pipeline.yaml"), site, changes)
        with Session(request, Screen(screen)) as session:
            prepared = stages.prepare(session)
            trained = stages.train(session, prepared)
        said = screen.getvalue()
        return {"prepared": prepared.folder, "said": said, **to_json(trained.value)}

    def start(self, storage: str, use: str, workers: int, *changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "command.py", str(self.site(storage, use, workers)), *changes],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_ranges, "SMALL", 10**9)  # as COMMAND has it
        yield Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def reference(project: Project) -> dict[str, Any]:
    """One worker, one rank."""
    return project.run("reference", "local", 1)


def shards(folder: str) -> dict[str, str]:
    found = Path(folder, "shards").rglob("*")
    files = [path for path in found if path.is_file()]
    assert len(files) > 3
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def trail(result: dict[str, Any]) -> list[Any]:
    entries: list[Any] = json.loads(Path(result["model"], "train.json").read_text())["trail"]
    return entries


def weights(result: dict[str, Any]) -> bytes:
    return Path(result["model"], "weights.pt").read_bytes()


@pytest.mark.parametrize(
    ("use", "workers"), [("local", 3), ("local", 4), ("dask", 2), ("spark", 2)]
)
def test_shards_and_weights_for_any_number_of_workers_on_any_engine(
    project: Project, reference: dict[str, Any], use: str, workers: int
) -> None:
    """Dropout, batch norm and embeddings on; uneven slices and a short last batch."""
    result = project.run(f"{use}-{workers}", use, workers)
    assert (result["world"], result["virtual_ranks"]) == (workers, 4)
    assert reference["world"] == 1
    assert shards(result["prepared"]) == shards(reference["prepared"])
    assert trail(result) == trail(reference)
    assert result["model_digest"] == reference["model_digest"]
    assert result["metrics"] == reference["metrics"]
    assert weights(result) == weights(reference)  # running statistics too


def test_killed_then_stopped_and_each_time_started_again(
    project: Project, reference: dict[str, Any]
) -> None:
    """kill -9 of the command in the middle of training, then SIGTERM; each on another world."""
    folder = project.folder / "killed" / "train"
    process = project.start("killed", "local", 2)
    killed_after = wait_for_checkpoint(folder, process, 0)
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name() == RANK
    ]
    assert len(ranks) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert psutil.wait_procs(ranks, timeout=30)[1] == []  # no rank outlives its driver

    process = project.start("killed", "local", 3)
    stopped_after = wait_for_checkpoint(folder, process, killed_after)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert went_on_from(said) >= killed_after
    assert not list(folder.glob("*/stage.json"))

    # How often checkpoints are made decides nothing, so it may change in between.
    result = project.run("killed", "local", 1, "train.checkpoint_every_s=9")
    assert went_on_from(result["said"]) >= stopped_after
    assert shards(result["prepared"]) == shards(reference["prepared"])  # made by two workers
    assert trail(result) == trail(reference)
    assert result["model_digest"] == reference["model_digest"]
    assert weights(result) == weights(reference)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str], after: int) -> int:
    """The step of the first checkpoint of a later step than ``after``; training goes on."""
    give_up = time.monotonic() + 100
    while True:
        found = [step_of(path.name) for path in folder.glob("*/checkpoints/*.ckpt")]
        if max(found, default=0) > after:
            return max(found)
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.005)


def went_on_from(said: str) -> int:
    """The step that a training went on from; a dying gang may have saved one more."""
    assert "goes on from step " in said
    return int(said.partition("goes on from step ")[2].split()[0])


def test_bf16_for_any_number_of_workers(project: Project, reference: dict[str, Any]) -> None:
    changes = ("train.precision=bf16", "train.epochs=3")
    one = project.run("bf16-1", "local", 1, *changes)
    three = project.run("bf16-3", "local", 3, *changes)
    assert three["world"] == 3
    assert trail(three) == trail(one)
    assert weights(three) == weights(one)
    for here, there in zip(one["history"], reference["history"], strict=False):
        assert here["loss"] == pytest.approx(there["loss"], rel=0.02)
        assert here["loss"] != there["loss"]


def test_micro_batches_are_virtual_ranks(project: Project, reference: dict[str, Any]) -> None:
    """At most 33 of 130 rows at once are 4 slices, whatever the world."""
    changes = ("train.virtual_ranks=auto", "train.micro_batch_rows=33")
    found = project.run("micro", "local", 2, *changes)
    assert (found["world"], found["virtual_ranks"]) == (2, 4)
    assert weights(found) == weights(reference)


def test_world_has_the_same_bits_for_the_same_world(
    project: Project, reference: dict[str, Any]
) -> None:
    """By DistributedDataParallel, killed and started again or not."""
    changes = ("train.virtual_ranks=auto", "train.determinism=world", "train.epochs=8")
    whole = project.run("world", "local", 3, *changes)
    assert "train: 3 ranks x 1 thread, determinism: world" in whole["said"]
    process = project.start("world-killed", "local", 3, *changes)
    killed_after = wait_for_checkpoint(project.folder / "world-killed" / "train", process, 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = project.run("world-killed", "local", 3, *changes)
    assert went_on_from(again["said"]) >= killed_after
    assert trail(again) == trail(whole)
    assert weights(again) == weights(whole)
    # Dropout and batch norm see other slices than with four virtual ranks: near, not the same.
    assert whole["history"][7]["loss"] == pytest.approx(reference["history"][7]["loss"], rel=0.1)
    two = project.run("world-2", "local", 2, *changes[:2], "train.epochs=1")
    assert two["history"][0]["loss"] == pytest.approx(whole["history"][0]["loss"], rel=0.1)
    assert two["history"][0]["loss"] != whole["history"][0]["loss"]


def test_off_trains_as_well(project: Project, reference: dict[str, Any]) -> None:
    changes = ("train.virtual_ranks=auto", "train.determinism=off", "train.epochs=8")
    found = project.run("off", "local", 2, *changes)
    assert found["history"][7]["loss"] == pytest.approx(reference["history"][7]["loss"], rel=0.1)
