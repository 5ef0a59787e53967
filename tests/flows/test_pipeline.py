"""Whole runs: real Prefect, real MLflow, real engines, as a user starts them."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.store.owner import this_owner
from ddlflow.train.rank import NAME as RANK

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings(
    # Prefect and MLflow on each other's and their own doings; none is ours.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
    "ignore::ResourceWarning",
)


SLOW = ("--set", "train.epochs=120", "--set", "train.checkpoint_every_s=0.2")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a small collider pipeline on the local engine."""
    return lay_out(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, _prefect_url: str) -> str:
    """The digest of the model that `SLOW` trains when nothing comes in between."""
    project = lay_out(tmp_path_factory.mktemp("undisturbed"))
    done = run_json(project, *SLOW, PREFECT_API_URL=_prefect_url)
    digest: str = done["model_digest"]
    return digest


def lay_out(folder: Path) -> Path:
    (folder / "pipelines").mkdir()
    (folder / "conf").mkdir()
    pipeline = yaml.safe_load((ROOT / "pipelines/quickstart.yaml").read_text())
    pipeline["name"] = "small"
    pipeline["data"]["source"]["rows"] = 6_000
    pipeline["train"]["epochs"] = 2
    pipeline["train"]["batch_rows"] = 200
    pipeline["train"]["virtual_ranks"] = 2
    pipeline["register"] = "small-model"
    (folder / "pipelines/small.yaml").write_text(yaml.safe_dump(pipeline))
    site = yaml.safe_load((ROOT / "conf/local.yaml").read_text())
    site["engine"] = {"use": "local", "workers": 2}
    (folder / "conf/local.yaml").write_text(yaml.safe_dump(site))
    return folder


def ddlflow(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in the project."""
    return subprocess.run(
        [sys.executable, "-m", "ddlflow", *arguments],
        cwd=project,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def run_json(project: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    done = ddlflow(project, "run", "small", "--json", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_json_and_imports(project: Path) -> tuple[dict[str, Any], set[str]]:
    """As `run_json`, and the packages that the command has imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ddlflow", "run", "small", "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return json.loads(done.stdout), {
        line.rpartition("|")[2].split(".")[0].strip() for line in lines
    }


def client_of(project: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{project}/.ddlflow/mlflow.db")


def test_a_run_leaves_all_that_it_promises_and_is_cached_the_second_time(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_here: Callable[..., tuple[int, str, str]],
) -> None:
    first = run_json(project)
    assert [stage["name"] for stage in first["stages"]] == ["prepare", "train", "evaluate", "infer"]
    assert not any(stage["cached"] for stage in first["stages"])
    assert first["metrics"]["auroc"] > 0.52
    assert first["model_uri"] == "models:/small-model/1"
    assert first["rows_per_s"] > 0

    client = client_of(project)
    run = client.get_run(first["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_rows"] == "200"
    assert run.data.tags["ddlflow.model_digest"] == first["model_digest"]
    assert run.data.metrics["test_auroc"] == pytest.approx(first["metrics"]["auroc"])
    history = client.get_metric_history(first["run_id"], "val_auroc")
    assert [metric.step for metric in history] == [1, 2]
    kept = {file.path for file in client.list_artifacts(first["run_id"])}
    assert {"pipeline.yaml", "site.yaml", "report", "training", "versions.json"} <= kept
    plots = {file.path for file in client.list_artifacts(first["run_id"], "report")}
    assert {"report/roc.png", "report/loss_curves.png", "report/feature_histogram.png"} <= plots
    assert run.inputs.dataset_inputs[0].dataset.name == "small"

    files = sorted(Path(first["predictions"]).glob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == 6_000

    second, imported = run_json_and_imports(project)
    assert all(stage["cached"] for stage in second["stages"])
    assert "ddlflow" in imported
    assert {"torch", "matplotlib", "dask", "distributed", "duckdb"} & imported == set()
    assert second["model_digest"] == first["model_digest"]
    assert second["run_id"] != first["run_id"]
    assert len(client.get_metric_history(second["run_id"], "val_auroc")) == 2

    # A model by its URI over another source; and again with nothing to do.
    source = next((project / ".ddlflow/source").glob("*/*.parquet"))
    monkeypatch.chdir(project)
    options = ("--out", "scored", "--key", "m_bb", "--json")
    for _ in range(2):
        status, out, wrong = command_here("infer", first["model_uri"], str(source), *options)
        assert status == 0, wrong
        assert json.loads(out)["rows"] == 6_000
    table = pq.read_table(project / "scored")
    assert table.column_names == ["m_bb", "prediction", "probability"]
    assert table["m_bb"].to_pylist() == pq.read_table(source)["m_bb"].to_pylist()


@pytest.mark.usefixtures("prefect_server")
def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_ends_with_the_same_bits(
    project: Path, undisturbed: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ddlflow", "run", "small", *SLOW],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any((project / ".ddlflow/train").glob("*/checkpoints/*.ckpt")), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not any((project / ".ddlflow/commands").iterdir())  # it ended with a word
    client = client_of(project)
    runs = client.search_runs([client.get_experiment_by_name("ddlflow").experiment_id])
    (run,) = runs
    assert run.info.status == "KILLED"

    again = run_json(project, *SLOW)
    assert again["model_digest"] == undisturbed
    assert again["run_id"] == run.info.run_id
    assert client.get_run(again["run_id"]).info.status == "FINISHED"
    epochs = [metric.step for metric in client.get_metric_history(again["run_id"], "loss")]
    assert sorted(epochs) == list(range(1, 121))


def test_a_killed_command_goes_on_and_its_flow_run_has_crashed(
    project: Path, undisturbed: str
) -> None:
    lost = killed_in_training(project)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and ranks_of(project):
        time.sleep(0.2)
    assert not ranks_of(project)
    killed = run_json(project, *SLOW)
    assert states_of(lost) == ({"Crashed"}, {"Completed", "Crashed"})
    assert processes_of(lost) == []
    assert not any((project / ".ddlflow/commands").iterdir())
    assert killed["model_digest"] == undisturbed


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_the_same_command_twice_at_once_works_once(project: Path) -> None:
    slow = ["--set", "train.epochs=30", "--set", "train.checkpoint_every_s=0.2"]
    command = [sys.executable, "-m", "ddlflow", "run", "small", "--json", *slow]
    said = project / "said"
    with said.open("w") as stderr:
        pipe = subprocess.PIPE
        first = subprocess.Popen(command, cwd=project, stdout=pipe, stderr=stderr, text=True)
        processes = [first]
        try:
            wait_for(
                lambda: any((project / ".ddlflow/train").glob("*/checkpoints/*.ckpt")), first, 200
            )
            first.send_signal(signal.SIGSTOP)  # it would end before the second has started
            second = subprocess.Popen(command, cwd=project, stdout=pipe, stderr=stderr, text=True)
            processes.append(second)
            wait_for(lambda: "waiting: " in said.read_text(), second)
            first.send_signal(signal.SIGCONT)
            results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    assert f"waiting: process {first.pid} on " in said.read_text()
    assert [[s["cached"] for s in result["stages"]] for result in results] == [
        [False] * 4,
        [True] * 4,
    ]
    assert len({result["model_digest"] for result in results}) == 1
    assert len({result["run_id"] for result in results}) == 2
    assert not list((project / ".ddlflow").rglob(".*.lease*"))
    assert not list((project / ".ddlflow/unfinished").iterdir())


def test_the_doctor_ends_what_a_killed_command_left(project: Path) -> None:
    lost = killed_in_training(project)
    assert "Running" in states_of(lost)[0]
    done = ddlflow(project, "doctor")
    assert done.returncode == 0, done.stderr
    assert "run small on local (process" in done.stdout
    assert "1 flow run set to Crashed" in done.stdout
    assert " serves (process " in done.stdout  # Prefect's server stays: others share it
    assert "is half done" in done.stdout
    assert states_of(lost) == ({"Crashed"}, {"Completed", "Crashed"})
    assert processes_of(lost) == []
    assert not ranks_of(project)
    client = client_of(project)
    (run,) = client.search_runs([client.get_experiment_by_name("ddlflow").experiment_id])
    assert run.info.status == "KILLED"
    assert not any((project / ".ddlflow/commands").iterdir())
    assert "none was lost: nothing to do." in ddlflow(project, "doctor").stdout


def test_the_doctor_names_what_it_cannot_mend(project: Path) -> None:
    commands = project / ".ddlflow/commands"
    commands.mkdir(parents=True)
    lost = [replace(this_owner(), started=n).name for n in (1, 2)]  # not this process's start
    places = {lost[0]: "http://127.0.0.1:9/api", lost[1]: str(project / "other")}
    for name, place in places.items():
        record = {"what": f"run {name} on local", "prefect": place}
        (commands / f"{name}.json").write_text(json.dumps(record))
    done = ddlflow(project, "doctor", "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert not said["ok"]
    away, other = [f["text"] for f in said["findings"] if f["level"] == "error"]
    assert "could not be ended: http://127.0.0.1:9/api does not do it: " in away
    assert f"it is kept elsewhere; set PREFECT_HOME={project / 'other'}. " in other
    assert len(list(commands.iterdir())) == 2  # the next look tries again


@pytest.mark.usefixtures("prefect_server")
def test_a_tracking_server_that_is_down_does_not_stop_a_run(project: Path) -> None:
    away = ["--set", "tracking.uri=http://127.0.0.1:9"]
    result = run_json(project, *away)
    assert result["metrics"]["auroc"] > 0.52
    assert Path(result["model_uri"]).is_dir()  # no server gave it a URI
    assert any((project / ".ddlflow/tracking").iterdir())  # it waits to be sent


def killed_in_training(project: Path) -> str:
    """A command that was killed with -9 after its first checkpoint: its name."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ddlflow", "run", "small", *SLOW],
        cwd=project,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: any((project / ".ddlflow/train").glob("*/checkpoints/*.ckpt")), process)
    finally:
        process.kill()
        process.wait()
    (record,) = (project / ".ddlflow/commands").iterdir()
    return record.stem


def states_of(command: str) -> tuple[set[str], set[str]]:
    """The states of a command's flow runs, and of their task runs, as Prefect keeps them."""
    path = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    own = "select id from flow_run where tags like ?"
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = [
            database.execute(query, [f'%"command:{command}"%']).fetchall()
            for query in (
                f"select state_name from flow_run where id in ({own})",
                f"select state_name from task_run where flow_run_id in ({own})",
            )
        ]
    flows, tasks = ({state for (state,) in found} for found in rows)
    return flows, tasks


def processes_of(command: str) -> list[str]:
    """The command lines of the processes that a command started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DDLFLOW_COMMAND") == command:
                found.append(" ".join(process.cmdline()))
    return found


def wait_for(seen: Any, process: "subprocess.Popen[Any]", timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert process.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(project: Path) -> list[int]:
    """Rank processes whose log lies in this project."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == RANK:
            try:
                if any(str(project) in file.path for file in process.open_files()):
                    found.append(process.pid)
            except psutil.Error:
                continue
    return found
