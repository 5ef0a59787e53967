"""The stage search on the real local engine: which trials, what became of them, and the best."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.errors import TrainingError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.events import OnTrial, ignore
from ddlflow.runs.finished import Stage
from ddlflow.runs.result_json import from_json
from ddlflow.runs.results import SearchResult
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.sweep.choose.halving import keep
from ddlflow.sweep.choose.sampler import sampler_of
from ddlflow.sweep.choose.table import TrialRow

Json = dict[str, Any]
LR = "train.optimizer.lr"
PIPELINE: Json = {
    "name": "p",
    "data": {"source": "t.parquet", "label": "y", "split": {"validation": 0.3, "test": 0.1}},
    "model": {"use": "mlp", "hidden": [4]},
    "train": {
        "objective": "binary",
        "epochs": 2,
        "batch_rows": 32,
        "optimizer": {"use": "adam", "lr": 0.01},
    },
    "sweep": {"fuse": "never"},
}
# A model that fails in ways that only its training shows, and no trial of it before.
NET = """\
import inspect
import os
import signal
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features, width=1, marks=""):
        super().__init__()
        self.width, self.marks = width, marks
        self.layers = nn.Sequential(nn.Linear(num_features, width), nn.Linear(width, 1))

    def forward(self, x):
        if self.width in (3, 5, 6) and "train_piece" in {f.function for f in inspect.stack(0)}:
            if self.width == 3:
                raise RuntimeError("three is no width")
            if self.width == 5 or not list(Path(self.marks).glob("6-*")):
                Path(self.marks, f"{self.width}-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x).squeeze(1)
"""
# What the search does, as processes that can be killed: a new one for each line it reads. Most
# train by themselves: starting workers takes longest.
COMMAND = """
import os
import sys
import optuna.samplers
import torch._dynamo
from ddlflow.engines import ItemDone
from ddlflow.runs import stages, sweeps
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

class Inline:
    slots = 1

    def map(self, function, items, *, on_event=lambda event: None):
        for number, item in enumerate(items):
            result = function(item)
            on_event(ItemDone(number, None))
            yield result

    def warm(self, threads, modules):
        pass

    def close(self):
        pass

for engine in sys.stdin:
    driver = os.fork()
    if not driver:
        with Session(load("p.yaml", sys.argv[1], sys.argv[2:]), Screen()) as session:
            if engine.strip() == "inline":
                session._engine = Inline()
            sweeps.search(session, stages.prepare(session))
        os._exit(0)
    print(driver, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]), flush=True)
"""


class Project:
    """A folder with a small table, and a storage for each number of workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions: dict[int, Session] = {}
        self.stack = ExitStack()
        (folder / "data").mkdir()
        numbers = np.random.default_rng(4)
        a, b, noise = numbers.standard_normal((3, 500))
        table = pa.table({"a": a, "b": b, "y": (a - b + 0.7 * noise > 0).astype(int)})
        pq.write_table(table, folder / "data" / "t.parquet")
        (folder / "p.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
        (folder / "net.py").write_text(NET)
        (folder / "command.py").write_text(COMMAND)

    def changes(self, search: Json, **sections: Any) -> list[str]:
        given = {"search": search, **sections}
        return [f"{name}={json.dumps(value)}" for name, value in given.items()]

    def site(self, storage: str, workers: int) -> Path:
        values = {
            "engine": {"use": "local", "workers": workers, "threads": 1},
            "device": "cpu",
            "data_root": str(self.folder / "data"),
            "storage": str(self.folder / storage),
        }
        path = self.folder / f"{storage}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def session(self, search: Json, workers: int = 1, **sections: Any) -> Session:
        """The one session of so many workers, now with this search."""
        site = str(self.site(f"storage-{workers}", workers))
        request = load(str(self.folder / "p.yaml"), site, self.changes(search, **sections))
        if workers not in self.sessions:
            self.sessions[workers] = self.stack.enter_context(
                Session(request, Screen(io.StringIO()))
            )
        self.sessions[workers].use(request.pipeline)
        return self.sessions[workers]

    def search(
        self,
        search: Json,
        workers: int = 1,
        tell: OnTrial = ignore,
        **sections: Any,
    ) -> tuple[Stage[SearchResult], list[Json]]:
        """The stage, and its table of trials."""
        session = self.session(search, workers, **sections)
        found = sweeps.search(session, stages.prepare(session), tell)
        return found, table_of(found)


def table_of(found: Stage[SearchResult]) -> list[Json]:
    rows: list[Json] = json.loads(Path(found.folder, "trials.json").read_text())["trials"]
    return rows


def row_of(row: Json) -> TrialRow:
    """A row of the table's file."""
    return from_json(TrialRow, row, "trials.json")


def plain(row: TrialRow) -> Json:
    """The row as its file has it."""
    values: Json = json.loads(json.dumps(asdict(row)))
    return values


def but_times(rows: Sequence[Json]) -> list[Json]:
    return [{k: v for k, v in row.items() if k not in {"seconds", "ended_s"}} for row in rows]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Starting workers takes longest: each number of them is started once."""
    made = Project(tmp_path_factory.mktemp("project"))
    with made.stack:
        yield made


# ---- methods ----------------------------------------------------------------------------------


def test_a_grid_is_all_points_in_order_and_the_best_trains_the_final_model(
    project: Project,
) -> None:
    """Conditions too; and all that the value says."""
    space = {
        "model.use": ["linear", "mlp"],
        "model.hidden": {"values": [[3], [4]], "when": {"model.use": "mlp"}},
        LR: [0.03, 0.003],
    }
    told: list[TrialRow] = []
    train = {**PIPELINE["train"], "virtual_ranks": 1}  # one lane of the order, as a trial has
    grid = {"method": "grid", "space": space}
    session = project.session(grid, 2, model={"use": "linear"}, train=train)
    prepared = stages.prepare(session)
    found = sweeps.search(session, prepared, told.append)
    again = sweeps.search(session, prepared)
    sweeps.use_best(session, found)
    best = session.request.pipeline
    trained = stages.train(session, prepared)
    rows = table_of(found)
    assert [row["values"] for row in rows] == [
        {"model.use": "linear", LR: 0.03},
        {"model.use": "linear", LR: 0.003},
        {"model.use": "mlp", "model.hidden": [3], LR: 0.03},
        {"model.use": "mlp", "model.hidden": [3], LR: 0.003},
        {"model.use": "mlp", "model.hidden": [4], LR: 0.03},
        {"model.use": "mlp", "model.hidden": [4], LR: 0.003},
    ]
    assert [row["status"] for row in rows] == ["done"] * 6
    assert all(row["epochs"] == 2 and [e for e, _ in row["curve"]] == [1, 2] for row in rows)
    assert all(row["seconds"] > 0 and row["ended_s"] > 0 for row in rows)
    assert [row.number for row in told] == list(range(6))
    assert told == [row_of(row) for row in rows]
    winner = max(rows, key=lambda row: (row["score"], -row["number"]))
    assert found.value.best == row_of(winner)
    assert (found.value.metric, found.value.better) == ("auroc", "higher")
    assert found.value.statuses == {"done": 6, "pruned": 0, "failed": 0}
    assert (found.value.trials, found.value.trainings, found.value.fused) == (6, 6, 0)
    assert again.cached
    assert best.train.optimizer.lr == winner["values"][LR]
    assert best.model.use == winner["values"]["model.use"]
    # The very training that the search had: the same score, to the last bit.
    assert trained.value.metrics["auroc"] == winner["score"]


def test_scores_of_folds_are_their_means_over_all_repeats(project: Project) -> None:
    """Of five trials by two repeats of three folds; as cross_validate scores the same setting."""
    section = {"method": "random", "trials": 2, "cv": True, "space": {LR: {"uniform": [0.001, 1]}}}
    cv = {"folds": 3, "repeats": 2}
    found, rows = project.search(section, 2, cv=cv)
    assert found.value.trainings == 12
    for row in rows:
        assert (row["status"], len(row["scores"])) == ("done", 6)
        assert row["score"] == pytest.approx(np.mean(row["scores"]))
        assert row["std"] == pytest.approx(np.std(row["scores"], ddof=1))
        assert row["stderr"] == pytest.approx(np.std(row["scores"], ddof=1) / np.sqrt(6))
    session = project.session(section, 1, cv=cv)
    sweeps.use_best(session, found)
    same = sweeps.cross_validate(session, stages.prepare(session))
    each = [fold.metrics["auroc"] for fold in same.value.folds]
    assert tuple(each) == found.value.best.scores
    assert same.value.scores["auroc"].mean == pytest.approx(found.value.best.score)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_settings_are_those_of_the_sampler_that_hears_the_scores(
    project: Project, method: str
) -> None:
    section = {"method": method, "trials": 7, "together": 3, "space": {LR: {"uniform": [0, 1]}}}
    session = project.session(section, 2)
    found = sweeps.search(session, stages.prepare(session))
    spec = session.request.pipeline.search
    assert spec is not None
    rows = table_of(found)
    sampler = sampler_of(spec, "higher")
    expected = []
    for size in (3, 3, 1) if method == "tpe" else (7,):
        for trial in sampler.ask(size):
            expected.append(trial.values)
            sampler.tell(trial.number, rows[trial.number]["score"])
    assert [row["values"] for row in rows] == expected
    assert len({row["values"][LR] for row in rows}) == 7


# ---- pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["halving", "hyperband"])
def test_the_same_trials_end_early_for_one_worker_and_two(project: Project, use: str) -> None:
    section = {
        "method": "random",
        "trials": 9,
        "space": {LR: {"log_uniform": [1e-4, 1]}},
        "pruning": {"use": use, "factor": 3},
    }
    train = PIPELINE["train"] | {"epochs": 4}
    one, rows = project.search(section, 1, train=train)
    two, same = project.search(section, 2, train=train)
    assert but_times(same) == but_times(rows)
    assert [(s.value.best.number, s.value.best.score) for s in (one, two)] == [
        (one.value.best.number, one.value.best.score)
    ] * 2
    assert one.value.statuses == two.value.statuses
    assert one.value.statuses["pruned"] > 0
    assert {row["epochs"] for row in rows if row["status"] == "done"} == {4}
    if use == "halving":
        first = {row["number"]: row["curve"][0][1] for row in rows}
        kept = keep(first, 3, "higher")
        assert [row["number"] for row in rows if row["status"] == "done"] == kept
        assert {row["epochs"] for row in rows if row["status"] == "pruned"} == {1}


def test_a_fused_search_prunes_as_one_apart(project: Project) -> None:
    """Folds and repeats too: a trial goes on with all its trainings, or with none."""
    section = {
        "method": "random",
        "trials": 4,
        "cv": True,
        "space": {LR: {"log_uniform": [1e-4, 1]}},
        "pruning": {"use": "halving", "factor": 2},
    }
    more = {"cv": {"folds": 2, "repeats": 2}, "train": PIPELINE["train"] | {"epochs": 4}}
    _, apart = project.search(section, 2, **more)
    found, fused = project.search(section, 2, sweep={"fuse": "always"}, **more)
    assert (found.value.trainings, found.value.fused) == (16, 16)
    for one, other in zip(apart, fused, strict=True):
        for key in ("number", "values", "status", "epochs"):
            assert one[key] == other[key]
        assert len(one["scores"]) == 4
        assert one["scores"] == pytest.approx(other["scores"], abs=2e-3)
    assert sorted(row["epochs"] for row in apart) == [1, 1, 2, 4]
    assert [row["status"] for row in apart].count("done") == 1


def test_async_halving_ends_trials_by_those_before_them(project: Project) -> None:
    section = {
        "method": "grid",
        "space": {LR: [0.1, 1e-7, 0.03, 1e-6]},
        "pruning": {"use": "async_halving", "factor": 2},
    }
    train = PIPELINE["train"] | {"epochs": 3}
    found, rows = project.search(section, 1, train=train)
    assert [row["status"] for row in rows][:2] == ["done", "pruned"]
    assert (rows[0]["epochs"], rows[1]["epochs"]) == (3, 1)
    assert rows[3]["status"] == "pruned"
    assert found.value.best.status == "done"


def test_a_trial_that_stopped_early_before_its_rung_is_done(project: Project) -> None:
    section = {
        "method": "grid",
        "space": {LR: [0.05, 1e-9]},  # the second cannot get better: its patience ends
        "pruning": {"use": "halving", "factor": 2, "min_epochs": 4},
    }
    stopping = {"patience": 1, "min_delta": 0.01, "metric": "loss"}
    train = PIPELINE["train"] | {"epochs": 8, "early_stopping": stopping}
    _, rows = project.search(section, 1, train=train)
    assert (rows[1]["status"], rows[1]["epochs"]) == ("done", 2)


# ---- time -------------------------------------------------------------------------------------


def test_time_ends_a_search_with_what_there_is(project: Project) -> None:
    """No trial is begun after it; one that was begun is trained to its end, rungs and all."""
    section = {
        "method": "random",
        "trials": 5000,
        "time_s": 12.0,
        "space": {LR: {"uniform": [0.001, 0.1]}},
        "pruning": {"use": "halving", "factor": 4, "min_epochs": 2},
    }
    train = PIPELINE["train"] | {"epochs": 8}
    project.search({"method": "grid", "space": {LR: [0.3]}})  # the worker is there
    found, rows = project.search(section, 1, train=train)
    assert 0 < len(rows) < 5000
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert {row["status"] for row in rows} <= {"done", "pruned"}
    assert {row["epochs"] for row in rows if row["status"] == "done"} == {8}
    assert found.value.best.epochs == 8
    assert found.value.trials == len(rows)


def test_a_time_that_is_over_before_the_first_trial(project: Project) -> None:
    section = {"method": "random", "trials": 2, "time_s": 1e-9, "space": {LR: [0.1, 0.2]}}
    with pytest.raises(TrainingError, match="The search's time was over before a trial ended"):
        project.search(section)


# ---- trials that fail -----------------------------------------------------------------------


def test_a_trial_whose_loss_is_no_number_fails_and_the_others_go_on(project: Project) -> None:
    section = {"method": "grid", "space": {LR: [0.01, 1e38, 0.02]}}
    for fuse in ("never", "always"):
        found, rows = project.search(section, sweep={"fuse": fuse})
        assert [row["status"] for row in rows] == ["done", "failed", "done"]
        assert (rows[1]["score"], rows[1]["scores"]) == (None, [])
        assert "is no number after epoch 1" in rows[1]["reason"] or "loss is" in rows[1]["reason"]
        assert rows[0]["reason"] is None
        assert found.value.statuses == {"done": 2, "pruned": 0, "failed": 1}
    with pytest.raises(TrainingError) as failed:
        project.search({"method": "grid", "space": {LR: [1e38]}})
    said = str(failed.value)
    assert said.startswith("None of 1 trials was trained to its end with a score; the first failed")
    assert said.endswith("with --fresh.")


def test_user_code_that_raises_or_kills_its_worker_fails_alone(project: Project) -> None:
    """Width 3 raises; 5 kills each worker that trains it; 6 kills one, and is then trained."""
    marks = project.folder / "marks"
    marks.mkdir()
    found, rows = project.search(
        {"method": "grid", "space": {"model.width": [2, 3, 5, 6]}},
        2,
        model={"use": "net:Net", "marks": str(marks)},
    )
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "done"]
    assert rows[1]["reason"].startswith("RuntimeError: three is no width (")
    assert rows[2]["reason"] == "Its worker died 3 times while it was trained: out of memory?"
    assert found.value.statuses == {"done": 2, "pruned": 0, "failed": 2}
    assert [len(list(marks.glob(f"{width}-*"))) for width in (5, 6)] == [3, 1]


def test_stacks_whose_code_raises_fail_and_the_others_go_on(project: Project) -> None:
    found, rows = project.search(
        {"method": "grid", "space": {"model.width": [2, 3], LR: [0.01, 0.02]}},
        2,
        model={"use": "net:Net"},
        sweep={"fuse": "always"},
    )
    assert found.value.fused == 4
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    assert {row["reason"].partition(" (")[0] for row in rows[2:]} == {
        "RuntimeError: three is no width"
    }


# ---- killed -----------------------------------------------------------------------------------

KILLS = 10


class Drivers:
    """Processes that search, forked from one that has imported all."""

    def __init__(self, project: Project, site: Path, changes: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "command.py", str(site), *changes],
            cwd=project.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, engine: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{engine}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """How the last one ended."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def finished(folder: Path) -> dict[Path, int]:
    """What stands of pieces, each with the time of its writing."""
    found = [*folder.glob("search/*/trials-*/**/e*.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def test_killed_ten_times_it_has_the_same_trials_and_the_same_best(project: Project) -> None:
    section = {
        "method": "tpe",
        "trials": 12,
        "together": 6,
        "cv": True,
        "space": {LR: {"log_uniform": [1e-4, 1]}},
        "pruning": {"use": "halving", "factor": 2},
    }
    more = {"cv": {"folds": 2}, "train": PIPELINE["train"] | {"epochs": 4}}
    found, rows = project.search(section, 2, **more)
    storage = project.folder / "killed"
    draw = random.Random(time.time_ns())
    known: dict[Path, int] = {}
    kills = 0
    with Drivers(project, project.site("killed", 1), project.changes(section, **more)) as drivers:
        while True:
            driver = drivers.start("local" if kills == 5 else "inline")
            if kills < KILLS:
                wait_for_results(storage, len(known) + draw.choice([0, 1, 2]))
                time.sleep(draw.uniform(0, 0.05))
                os.kill(driver, signal.SIGKILL)
            status = drivers.wait()
            now = finished(storage)
            assert now.items() >= known.items()  # none was made again
            known = now
            if not status:
                break
            kills += 1
    assert kills == KILLS
    (stage,) = storage.glob("search/*/stage.json")
    again = json.loads(stage.read_text())
    same = json.loads((stage.parent / "trials.json").read_text())["trials"]
    assert but_times(same) == but_times(rows)
    assert but_times([again["value"]["best"]]) == but_times([plain(found.value.best)])


def wait_for_results(storage: Path, number: int) -> None:
    give_up = time.monotonic() + 60
    while len(finished(storage)) < number:
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_a_setting_that_a_training_refuses_is_a_failed_trial(project: Project) -> None:
    """`check` tries listed values and ends of ranges; between them a training may take less."""
    space = {"train.micro_batch_rows": [4, 16]}
    train = {**PIPELINE["train"], "virtual_ranks": 4}  # of 32 rows: slices of 8
    told: list[TrialRow] = []
    found, rows = project.search({"method": "grid", "space": space}, 1, told.append, train=train)
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert "more than micro_batch_rows 4" in rows[0]["reason"]
    assert found.value.best.number == 1
    assert [row.number for row in told] == [0, 1]
