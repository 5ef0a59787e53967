"""A recorded run trained again: identical, or what differs, or why it cannot be."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.tracking import open_run

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:DeprecationWarning",
    "ignore::ResourceWarning",  # MLflow leaves connections to its database to the collector
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
ROOT = Path(__file__).resolve().parents[2]
ROWS = 1_500
ONE = ("--workers", "1")  # one rank starts faster than two
PIPELINE = {
    "name": "small",
    "data": {"source": "t", "label": "y", "seed": 3},
    "model": {"use": "net:Wide", "width": 8},
    "train": {
        "objective": "binary",
        "epochs": 2,
        "batch_rows": 100,
        "virtual_ranks": 4,
        "digest_every": 3,
        "optimizer": {"use": "adam", "lr": 0.001},
    },
}
NET = """
import torch


class Wide(torch.nn.Sequential):
    def __init__(self, num_features, num_outputs, width):
        super().__init__(
            torch.nn.Linear(num_features, width),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(width, num_outputs),
            torch.nn.Flatten(0),
        )
"""


class Project:
    """A project with a folder pipeline; commands run in this process, as from its folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, command_here: Any) -> None:
        self.folder, self.ddlflow = folder, command_here
        monkeypatch.chdir(folder)

    def reproduce(self, run_id: str, *more: str) -> tuple[int, dict[str, Any]]:
        status, out, err = self.ddlflow("reproduce", run_id, "--json", *more)
        assert out.count("\n") == 1, (out, err)
        verdict: dict[str, Any] = json.loads(out)
        assert status == (0 if verdict["verdict"] == "identical" else 1)
        for difference in verdict["differences"]:
            assert f"differs: {difference['text']}\n" in err
        return status, verdict

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")


def lay_out(folder: Path) -> None:
    """conf/local.yaml, pipelines/small/ and data/t/."""
    (folder / "conf").mkdir()
    site = {
        "engine": {"use": "local", "workers": 2, "threads": 1},
        "device": "cpu",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "trust_code": True,
    }
    (folder / "conf" / "local.yaml").write_text(yaml.safe_dump(site))
    lay_out_pipeline(folder)
    (folder / "data" / "t").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(3):
        a, b = rng.standard_normal((2, ROWS // 3))
        y = (a - b + 0.5 * rng.standard_normal(ROWS // 3) > 0).astype(int)
        table = pa.table({"a": a, "b": b, "y": y})
        pq.write_table(table, folder / "data" / "t" / f"{number}.parquet", row_group_size=250)


def lay_out_pipeline(folder: Path) -> None:
    (folder / "pipelines" / "small").mkdir(parents=True)
    (folder / "pipelines" / "small" / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE))
    (folder / "pipelines" / "small" / "net.py").write_text(NET)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project and the id of a run of it; all of the run but MLflow's record is gone."""
    folder = tmp_path_factory.mktemp("project")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Session(load("small", "local"), Screen()) as session:
            prepared = stages.prepare(session)
            with recorded(session, prepared) as record:
                record.trained(stages.train(session, prepared, record.on_train_event))
    shutil.rmtree(folder / ".ddlflow")
    shutil.rmtree(folder / "pipelines")
    return folder, record.run_id


@pytest.fixture
def project(first: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, command_here: Any) -> Project:
    return Project(first[0], monkeypatch, command_here)


@pytest.mark.parametrize(
    "given",
    [
        ["--workers", "1", "--set", "train.optimizer.lr=0.00100", "--set", "engine.threads=1"],
        ["--workers", "2"],
    ],
    ids=["one worker", "two workers"],
)
def test_identical_on_any_number_of_workers(
    project: Project, first: tuple[Path, str], given: list[str]
) -> None:
    """With nothing but MLflow's record and the source; a value set as it was is no difference."""
    status, verdict = project.reproduce(first[1], *given)
    assert status == 0
    assert verdict["differences"] == []
    assert verdict["first_difference"] is None
    assert verdict["cause"] is None
    run = project.client.get_run(first[1])
    assert verdict["model_digest"] == run.data.tags["ddlflow.model_digest"]
    assert verdict["steps_compared"] == 8  # 12 steps an epoch: every third of 24
    child = project.client.get_run(verdict["child_run_id"])
    assert child.info.status == "FINISHED"
    assert child.info.experiment_id == run.info.experiment_id
    assert child.data.tags["mlflow.parentRunId"] == first[1]
    assert child.data.tags["ddlflow.reproduces"] == first[1]
    assert child.data.tags["ddlflow.verdict"] == "identical"
    kept = {file.path for file in project.client.list_artifacts(child.info.run_id)}
    assert "reproduce.json" in kept


def test_a_learning_rate_in_the_tenth_digit(project: Project, first: tuple[Path, str]) -> None:
    change = "train.optimizer.lr=0.0010000001"
    status, out, err = project.ddlflow("reproduce", first[1], "--set", change, *ONE)
    named = "train.optimizer.lr was 0.001, now 0.0010000001"
    assert status == 1
    assert f"differs: {named}\n" in err
    different, cause = out.splitlines()
    assert re.match(r"different: first seen at step \d+, after \d equal entries of", different)
    assert re.search(r"mean loss (0\.\d+ then, 0\.\d+ now|still the same, 0\.\d+)", different)
    assert cause == f"likely cause: {named}"
    children = project.client.search_runs(
        [project.client.get_run(first[1]).info.experiment_id],
        "tags.`ddlflow.verdict` = 'different'",
    )
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [first[1]]
    assert children[0].info.status == "FINISHED"


def test_threads_and_versions_are_named(project: Project, first: tuple[Path, str]) -> None:
    client = project.client
    folder = Path(client.get_run(first[1]).info.artifact_uri.removeprefix("file://"))
    before = (folder / "versions.json").read_text()
    changed = json.loads(before) | {"numpy": "1.0.0", "gone": "2.0"}
    (folder / "versions.json").write_text(json.dumps(changed))
    try:
        _, verdict = project.reproduce(first[1], "--set", "engine.threads=2", *ONE)
    finally:
        (folder / "versions.json").write_text(before)
    assert verdict["differences"] == [
        {"what": "threads", "text": "threads of a rank were 1, now 2"},
        {"what": "version", "text": "gone was 2.0, now not there"},
        {"what": "version", "text": f"numpy was 1.0.0, now {np.__version__}"},
    ]


def test_one_row_of_the_source_changed(project: Project, first: tuple[Path, str]) -> None:
    path = project.folder / "data" / "t" / "1.parquet"
    kept, before = path.read_bytes(), pq.read_table(path)
    values = before["a"].to_numpy().copy()
    values[300] += 1e-3
    changed = before.set_column(0, "a", pa.array(values))
    pq.write_table(changed, path, row_group_size=250)
    try:
        status, verdict = project.reproduce(first[1], *ONE)
    finally:
        path.write_bytes(kept)
    assert status == 1
    (difference,) = verdict["differences"]
    assert difference["what"] == "data"
    assert difference["text"].startswith("the data changed: t gives 1 of ")
    assert re.search(
        r" in its range 0 to 2 \((train|validation|test), 0\.parquet to 2\.parquet\)$",
        difference["text"],
    )
    assert verdict["cause"] == difference["text"]
    # It is seen at the first entry of the trail after the step that has this row.
    assert verdict["first_difference"]["step"] in {3, 6, 9, 12}
    assert verdict["model_digest"] is None


def test_rows_that_were_added_are_counted(project: Project, first: tuple[Path, str]) -> None:
    path = project.folder / "data" / "t" / "3.parquet"
    pq.write_table(pq.read_table(path.with_name("2.parquet")).slice(0, 100), path)
    try:
        status, verdict = project.reproduce(first[1], *ONE)
    finally:
        path.unlink()
    assert status == 1
    assert "the data changed: rows was 1,200 train + " in verdict["cause"]
    assert ", now 1,280 train + " in verdict["cause"]


def test_what_cannot_be_reproduced_is_one_line(
    project: Project, first: tuple[Path, str], tmp_path: Path
) -> None:
    uri = f"sqlite:///{project.folder}/mlflow.db"
    tags = {"ddlflow.model_digest": "x"}
    with open_run(uri, tmp_path / "spool", experiment="small", name="r", tags=tags) as run:
        run.set_terminated("FAILED")
    assert run.run_id is not None
    source = project.folder / "data" / "t"
    away = source.rename(source.with_name("away"))
    seen = {path for path in project.folder.rglob("*") if path.is_dir()}
    try:
        for run_id, word in {
            "0" * 32: f"{uri} has no run {'0' * 32}.",
            run.run_id: "is FAILED and holds no trained model",
            first[1]: str(source),
        }.items():
            status, out, err = project.ddlflow("reproduce", run_id)
            assert (status, out) == (2, "")
            (said,) = [line for line in err.splitlines() if line.startswith("ddlflow: ")]
            assert word in said
            assert "Traceback" not in err
        assert {path for path in project.folder.rglob("*") if path.is_dir()} == seen
    finally:
        away.rename(source)


@pytest.fixture(scope="module")
def changed(first: tuple[Path, str]) -> dict[str, str]:
    """Runs of the same project with other determinism; only their records are left."""
    folder, _ = first
    lay_out_pipeline(folder)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("world", "off", "micro"):
            what = "micro_batch_rows=30" if name == "micro" else f"determinism={name}"
            changes = ["train.virtual_ranks=auto", f"train.{what}"]
            with Session(load("small", "local", changes), Screen()) as session:
                prepared = stages.prepare(session)
                with recorded(session, prepared) as record:
                    record.trained(stages.train(session, prepared, record.on_train_event))
            found[name] = record.run_id
    shutil.rmtree(folder / ".ddlflow")
    shutil.rmtree(folder / "pipelines")
    return found


def test_without_elastic_only_the_same_world(project: Project, changed: dict[str, str]) -> None:
    status, verdict = project.reproduce(changed["world"])
    assert (status, verdict["differences"]) == (0, [])
    for name, more, word in (
        ("world", ["--workers", "1"], "train.determinism: world on 2 rank(s); 1 give other bits."),
        ("off", [], "trained with train.determinism: off; its bits cannot come again."),
    ):
        status, _, err = project.ddlflow("reproduce", changed[name], *more)
        assert status == 2
        assert word in err


def test_micro_batches_on_another_world(project: Project, changed: dict[str, str]) -> None:
    status, verdict = project.reproduce(changed["micro"], *ONE)
    assert (status, verdict["differences"]) == (0, [])


@pytest.mark.usefixtures("prefect_server")
def test_after_a_whole_run_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_here: Any
) -> None:
    """Prefect, MLflow and all: run, lose the storage, reproduce, compare."""
    lay_out(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow", "run", "small", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for stage in ("train", "prepare"):
        (tmp_path / ".ddlflow" / stage).rename(tmp_path / stage)
    project = Project(tmp_path, monkeypatch, command_here)
    status, verdict = project.reproduce(result["run_id"], *ONE)
    assert (status, verdict["differences"]) == (0, [])
    assert verdict["model_digest"] == result["model_digest"]
    ids = [result["run_id"], verdict["child_run_id"]]
    status, out, _ = project.ddlflow("compare", *ids, "--json")
    compared = json.loads(out)
    assert status == 0
    assert [run["run_id"] for run in compared["runs"]] == ids
    assert Path(compared["plot"]).is_file()
