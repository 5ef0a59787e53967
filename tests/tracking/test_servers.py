"""Real servers on loopback: they start slowly, so two tests hold all that needs them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pandas
import psutil
import pytest

from ddlflow.errors import TrackingError
from ddlflow.flow.command import prefect_page
from ddlflow.runs.installed import wheel
from ddlflow.tracking import open_run, send_pending
from ddlflow.tracking.connect import connect
from ddlflow.tracking.fetch import fetch_model
from ddlflow.tracking.log_model import log_model
from ddlflow.tracking.servers import Server, ServerProgram, _answers, pages, stop

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def get(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read()


def processes_of(folder):
    """Processes that have this folder in their environment, as the servers have here."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DDLFLOW_TEST_FOLDER") == str(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]


@pytest.fixture
def marked(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLFLOW_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_ui_serves_both_pages_until_sigterm_and_leaves_no_process(uri, marked, monkeypatch):
    monkeypatch.setenv("DDLFLOW_PREFECT_IDLE_S", "0")
    code = """
import json, sys
import ddlflow.api
site = {"engine": {"use": "local"}, "tracking": {"uri": sys.argv[1]}}
def say(pages):
    print(json.dumps([pages.mlflow, pages.prefect]), flush=True)
ddlflow.api.ui(site, say=say)
print("ended")
"""
    command = [sys.executable, "-c", code, uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=marked) as process:
        mlflow_page, prefect_page = json.loads(process.stdout.readline())
        assert b"MLflow" in get(mlflow_page)
        assert b"MLflow" in get(mlflow_page.replace("127.0.0.1", "localhost"))
        assert b"prefect" in get(prefect_page).lower()
        assert get(f"{prefect_page}/api/health") == b"true"
        assert len(processes_of(marked)) >= 4  # ours, MLflow with a worker, Prefect
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ended\n"
    assert process.returncode == 0
    give_up = time.monotonic() + 30
    while processes_of(marked):  # Prefect's server sees within a second that nobody uses it
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert {path.name for path in marked.iterdir()} <= {"prefect"}


class MlflowServer:
    """A server on a port of its own choice that can be killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.server = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/m.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = self.folder / "server.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.server = Server(ServerProgram("MLflow", (), {}, "/health"), self.uri, process, log)
        assert _answers(self.server, time.monotonic() + 120), self.server.log_text()

    def kill(self):
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()


@pytest.fixture
def server(tmp_path):
    connect(f"sqlite:///{tmp_path}/m.db")
    server = MlflowServer(tmp_path)
    yield server
    if server.server is not None:
        stop([server.server])


def test_a_server_that_is_away_comes_goes_and_comes_back_gets_everything_once(server, tmp_path):
    spools, said = tmp_path / "spools", []

    def begin(name):
        return open_run(
            server.uri,
            spools / name,
            experiment="away",
            name=name,
            tags={"n": name},
            say=said.append,
        )

    # Away: one run begins and ends, and another begins.
    with begin("early") as early:
        assert early.run_id is None
        early.log_params({"lr": 0.1})
        for step in range(1200):
            early.log_metrics({"loss": float(step)}, step, timestamp_ms=1000 + step)
        early.log_text("words", "a/words.txt")
    assert len(said) == 2  # the outage, and what waits
    late = begin("late")
    late.log_metrics({"loss": 1.0}, 1)
    assert late.run_id is None

    # It comes: the next command sends the first run, the second goes on by itself.
    server.start()
    assert len(send_pending(spools)) == 1
    while late.run_id is None:
        time.sleep(0.05)
    client = connect(server.uri)
    (found,) = client.search_runs(
        [client.get_experiment_by_name("away").experiment_id], "tags.n = 'early'"
    )
    assert found.info.status == "FINISHED"
    assert found.info.start_time == early.started_ms
    assert found.data.params == {"lr": "0.1"}
    losses = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.timestamp) for m in losses] == [(n, 1000 + n) for n in range(1200)]
    assert not (spools / "early").exists()

    # It is killed in the middle and comes back: nothing is lost, nothing is there twice.
    late.log_metrics({"loss": 2.0}, 2)
    server.kill()
    for step in range(3, 50):
        late.log_metrics({"loss": float(step)}, step)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    server.start()
    late.log_text("words", "a/words.txt")
    model_uri = log_model(
        late,
        folder,
        example=pandas.DataFrame({"pt": [1.0, 2.0]}),
        predictions=pandas.DataFrame({"prediction": [0.0, 1.0]}),
        digest="d",
        wheel=wheel(tmp_path),
        pip_requirements=["torch"],
        register_as="away",
    )
    late.set_terminated("FINISHED")
    late.close(60)
    losses = client.get_metric_history(late.run_id, "loss")
    assert sorted(m.step for m in losses) == list(range(1, 50))
    assert client.get_run(late.run_id).info.status == "FINISHED"
    assert client.list_artifacts(late.run_id, "a")[0].path == "a/words.txt"
    assert late.page == (
        f"{server.uri}/#/experiments/{found.info.experiment_id}/runs/{late.run_id}"
    )
    # The model came through the server's own artifact store, and comes back through it.
    for which in (model_uri or "models:/away/1", f"runs:/{late.run_id}/model"):
        fetched = fetch_model(which, server.uri, tmp_path / "to" / which.replace("/", "_"))
        assert (fetched / "model.json").read_text() == "{}"
        assert fetched.is_relative_to(tmp_path / "to")


def test_a_page_that_cannot_start_says_why_and_leaves_nothing(marked):
    (marked / "broken.db").write_text("no database")
    with (
        pytest.raises(TrackingError, match="The MLflow page did not start: "),
        pages(f"sqlite:///{marked}/broken.db", prefect=lambda: None),
    ):
        pytest.fail("it started")
    assert processes_of(marked) == []


def test_servers_that_run_already_are_named_and_none_is_started(marked, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    with pages("http://ann:pw@mlflow:5000", prefect=lambda: prefect_page(None)) as served:
        assert served.mlflow == "http://mlflow:5000"
        assert served.prefect == "http://prefect:4200"
        assert served.servers == ()
