"""Runs read back from a real store."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddlflow.errors import SpecError, TrackingError
from ddlflow.tracking import open_run
from ddlflow.tracking.read import Reader

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def run_id(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a bit of everything, FAILED."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "code").mkdir()
    (folder / "code" / "net.py").write_text("x = 1")
    tags = {"ddlflow.pipeline": "small", "other": "no"}
    run = open_run(uri, folder / "spool", experiment="read", name="a run", tags=tags)
    with run:
        run.log_params({"train.epochs": 3, "model.hidden": [1, 2]})
        for epoch, loss in ((2, 0.4), (1, 0.5), (10, 0.25)):
            run.log_metrics({"loss": loss}, epoch)
        run.log_text('{"a": [1]}', "versions.json")
        run.log_text("{", "half.json")
        run.log_file(folder / "code", "code")
        run.set_terminated("FAILED")
    assert run.run_id is not None
    return run.run_id


def test_what_was_logged_is_read_back(uri: str, run_id: str, tmp_path: Path) -> None:
    reader = Reader(uri)
    found = reader.run(run_id)
    assert (found.run_id, found.name, found.status) == (run_id, "a run", "FAILED")
    assert found.params == {"train.epochs": "3", "model.hidden": "[1, 2]"}
    assert found.tags["pipeline"] == "small"
    assert "other" not in found.tags
    assert found.metrics == {"loss": 0.25}
    assert reader.history(run_id, "loss") == [(1, 0.5), (2, 0.4), (10, 0.25)]
    assert reader.has(run_id, "code")
    assert not reader.has(run_id, "model")
    assert (reader.files(run_id, "code", tmp_path) / "net.py").read_text() == "x = 1"
    assert reader.json(run_id, "versions.json", tmp_path) == {"a": [1]}


def test_what_is_not_there_is_the_users_to_correct(uri: str, run_id: str, tmp_path: Path) -> None:
    reader = Reader(uri)
    for wrong in ("0" * 32, "no such run", "../../etc"):
        with pytest.raises(SpecError, match=f"has no run {wrong}.*ddlflow run") as caught:
            reader.run(wrong)
        assert "\n" not in str(caught.value)
        with pytest.raises(SpecError, match="has no run"):
            reader.has(wrong, "code")
    with pytest.raises(SpecError, match=r"has no nothing\.json among its artifacts"):
        reader.json(run_id, "nothing.json", tmp_path)
    with pytest.raises(SpecError, match=r"half\.json of run .* is damaged"):
        reader.json(run_id, "half.json", tmp_path)
    assert reader.history(run_id, "no such metric") == []


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"does not exist: no run is recorded there"):
        Reader(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_no_wrong_input(tmp_path: Path) -> None:
    reader = Reader("http://user:secret@127.0.0.1:9")
    asks: list[Any] = [
        lambda: reader.run("0" * 32),
        lambda: reader.history("0" * 32, "loss"),
        lambda: reader.files("0" * 32, "a.json", tmp_path),
    ]
    for ask in asks:
        with pytest.raises(TrackingError, match="does not answer") as caught:
            ask()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_mlflow_is_imported_after_its_settings(tmp_path: Path) -> None:
    """Its import reads them."""
    text = "import os, ddlflow.tracking.read; print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'])"
    watch = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mlflow': assert 'MLFLOW_HTTP_REQUEST_TIMEOUT' in os.environ\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", watch + text], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
