"""Runs beside each other: what differs, in a table, as JSON and as a picture."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.image import imread

from ddlflow.cli import app
from ddlflow.cli.runs import _shown
from ddlflow.errors import SpecError
from ddlflow.history.compare import Row, compare, differing
from ddlflow.tracking import open_run
from ddlflow.tracking.read import Recorded

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def run(**more: Any) -> Recorded:
    values = {
        "run_id": "1",
        "experiment_id": "0",
        "experiment": "ddlflow",
        "name": "one",
        "status": "FINISHED",
        "params": {},
        "tags": {},
        "metrics": {},
    }
    return Recorded(**(values | more))


def test_what_differs_stands_in_its_group_and_the_rest_is_counted() -> None:
    one = run(
        params={"train.epochs": "3", "train.seed": "7"},
        tags={
            "threads": "1",
            "data_digest": "aa",
            "torch": "2.12",
            "model_digest": "x",
            "run": "1",
        },
        metrics={"test_auroc": 0.5, "loss": float("nan"), "system/cpu": 3.0},
    )
    two = run(
        params={"train.epochs": "4", "train.seed": "7", "model.hidden": "[1]"},
        tags={
            "threads": "2",
            "data_digest": "bb",
            "torch": "2.13",
            "model_digest": "y",
            "run": "2",
        },
        metrics={"test_auroc": 0.6, "loss": float("nan"), "system/cpu": 4.0},
    )
    rows, same = differing([one, two])
    assert rows == [
        Row("settings", "threads", ["1", "2"]),
        Row("settings", "train.epochs", ["3", "4"]),
        Row("settings", "model.hidden", [None, "[1]"]),
        Row("data", "data_digest", ["aa", "bb"]),
        Row("versions", "torch", ["2.12", "2.13"]),
        Row("results", "model_digest", ["x", "y"]),
        Row("results", "test_auroc", [0.5, 0.6]),
    ]
    assert same == 2  # the seed, and a loss that is no number in both
    assert differing([one, one]) == ([], 2 + 3 + 1 + 2)


def test_cells_show_what_differs() -> None:
    assert _shown([0.5, None]) == ["0.5", "-"]
    assert _shown([0.123456789, 0.2]) == ["0.123457", "0.2"]
    assert _shown([0.123456781, 0.123456782]) == ["0.123456781", "0.123456782"]
    assert _shown(["x" * 30, "y"]) == ["x" * 21 + "...", "y"]
    one, two = _shown(["a, " * 20 + "b, " + "c" * 40, "a, " * 20 + "d"])
    assert (one, two) == ("...a, a, b, ccccccccc...", "...a, a, d")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A project and three runs: two that finished and one that failed early."""
    folder = tmp_path_factory.mktemp("project")
    uri = f"sqlite:///{folder}/mlflow.db"
    (folder / "conf").mkdir()
    (folder / "conf" / "local.yaml").write_text(yaml.safe_dump({"tracking": {"uri": uri}}))
    found = []
    for number in range(3):
        tags = {"ddlflow.torch": f"2.{number}", "ddlflow.version": "0.1.0"}
        spool = folder / f"spool-{number}"
        with open_run(uri, spool, experiment="small", name=f"run {number}", tags=tags) as opened:
            opened.log_params({"train.epochs": 3, "train.optimizer.lr": f"0.0{number}"})
            if number < 2:
                for epoch in (1, 2, 3):
                    metrics = {"loss": 1 / (epoch + number), "val_auroc": 0.5 + 0.1 * number}
                    opened.log_metrics(metrics | {"system/cpu": epoch}, epoch)
            else:
                opened.set_terminated("FAILED")
        assert opened.run_id is not None
        found.append(opened.run_id)
    return folder, found


@pytest.fixture(autouse=True)
def _in_project(runs: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs[0])


def test_two_runs_and_one_that_failed(runs: tuple[Path, list[str]]) -> None:
    folder, ids = runs
    found = compare(ids)
    assert [(r.run_id, r.name, r.status) for r in found.runs] == [
        (ids[0], "run 0", "FINISHED"),
        (ids[1], "run 1", "FINISHED"),
        (ids[2], "run 2", "FAILED"),
    ]
    assert found.rows == [
        Row("settings", "train.optimizer.lr", ["0.00", "0.01", "0.02"]),
        Row("versions", "torch", ["2.0", "2.1", "2.2"]),
        Row("results", "loss", [1 / 3, 1 / 4, None]),
        Row("results", "val_auroc", [0.5, 0.6, None]),
    ]
    assert found.same == 2  # train.epochs and ddlflow's version
    assert found.plot is not None
    assert Path(found.plot).parent == folder / ".ddlflow" / "compare"
    picture = imread(found.plot)
    assert picture.shape[1] > picture.shape[0]  # two panels beside each other
    assert found.page.startswith("ddlflow ui, and there #/compare-runs?runs=[")
    assert all(run_id in found.page for run_id in ids)


def test_a_run_given_twice_counts_once_and_many_runs_have_a_plot(
    runs: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = runs[1]
    assert len(compare([ids[0], ids[1], ids[0]]).runs) == 2
    with pytest.raises(SpecError, match="two different runs"):
        compare([ids[0], ids[0]])
    monkeypatch.setattr("ddlflow.history.compare.NAMED", 1)
    one, other = compare(ids[:2]).plot, compare([ids[0], ids[2]]).plot
    assert one != other


def ddlflow(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["ddlflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capfd.readouterr()
    status = ended.value.code
    assert isinstance(status, int)
    return status, said.out, said.err


def test_the_command(
    runs: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ids = runs[1]
    status, out, _ = ddlflow(monkeypatch, capfd, "compare", *ids[:2])
    assert status == 0
    for word in ("settings", "train.optimizer.lr", "0.00", "0.01", "versions", "torch", "results"):
        assert word in out
    assert f"run 0 ({ids[0][:8]})" in out
    assert "2 settings, tags and metrics are the same." in out
    assert "plot: " in out
    assert "compare-runs?runs=[" in out

    status, out, _ = ddlflow(monkeypatch, capfd, "compare", *ids[:2], "--json")
    assert (status, out.count("\n")) == (0, 1)
    found = json.loads(out)
    assert set(found) == {"runs", "rows", "same", "plot", "page"}
    assert {"group": "versions", "name": "torch", "values": ["2.0", "2.1"]} in found["rows"]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([0], "two different runs or more"),
        ([0, "f" * 32], f"has no run {'f' * 32}"),
        ([0, 0], "two different runs or more"),
        ([0, 1, "--on", "nowhere"], "There is no site 'nowhere'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    runs: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    given: list[Any],
    word: str,
) -> None:
    arguments = [runs[1][value] if isinstance(value, int) else value for value in given]
    status, out, err = ddlflow(monkeypatch, capfd, "compare", *arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert word in line


def test_no_database_is_made_by_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "local.yaml").write_text("device: cpu\n")
    monkeypatch.chdir(tmp_path)
    status, _, err = ddlflow(monkeypatch, capfd, "compare", "a", "b")
    assert status == 2
    assert "no run is recorded there" in err
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
