"""The command line: what goes to which stream, and the exit status."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ddlflow import api, errors
from ddlflow.cli import app, output
from ddlflow.data.coefficient_table import CoefficientTable, Term
from ddlflow.runs.interrupts import Interrupted
from ddlflow.runs.results import RunSummary, StageTime

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [["run"], ["check"], ["infer"], ["ui"], ["init"]]
COMMANDS += [["data", "collider"], ["data", "particles"], ["data", "higgs"]]
Said = tuple[int, str, str]


@pytest.fixture
def ddlflow(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """Runs a command in this process: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDLFLOW_DEBUG", raising=False)

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["ddlflow", *arguments])
        with pytest.raises(SystemExit) as exited:
            app.main()
        out, err = capfd.readouterr()
        assert isinstance(exited.value.code, int)
        return exited.value.code, out, err

    return run


# ---- help -----------------------------------------------------------------------------------


def test_help_lists_the_commands(ddlflow: Callable[..., Said]) -> None:
    status, out, err = ddlflow("--help")
    assert (status, err) == (0, "")
    for command in ("run", "check", "infer", "ui", "init", "data"):
        assert f"\n  {command} " in out


def test_no_argument_is_help(ddlflow: Callable[..., Said]) -> None:
    assert ddlflow() == ddlflow("--help")
    assert ddlflow("data") == ddlflow("data", "--help")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_takes_json(
    ddlflow: Callable[..., Said], command: list[str]
) -> None:
    status, out, err = ddlflow(*command, "--help")
    assert (status, err) == (0, "")
    assert "--json" in out


def test_the_version(ddlflow: Callable[..., Said]) -> None:
    assert ddlflow("--version") == (0, "ddlflow 0.1.0\n", "")


def test_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout == "ddlflow 0.1.0\n"


# ---- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'? See `ddlflow --help`."),
        (["run"], "Missing argument 'pipeline'. See `ddlflow run --help`."),
        (["run", "p", "--fersh"], "No such option: --fersh (Possible options: --fresh). See `ddl"),
        (["run", "p", "--on"], "Option '--on' requires an argument. See `"),
        (["data", "collider", "--out", "x"], "Missing option '--rows'. See `ddlflow data collider"),
        (["data", "collider", "--rows", "0", "--out", "x"], "Invalid value for '--rows': "),
        (["infer", "m"], "Missing argument 'source'. See `ddlflow infer --help`."),
    ],
)
def test_a_wrong_command_is_one_line(
    ddlflow: Callable[..., Said], arguments: list[str], said: str
) -> None:
    status, out, err = ddlflow(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"ddlflow: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (errors.SpecError("a is wrong.\nb is too."), 2, "ddlflow: a is wrong.\nddlflow: b is too."),
        (errors.DataError("no rows."), 2, "ddlflow: no rows."),
        (errors.EngineError("gone."), 1, "ddlflow: gone."),
        (errors.TrainingError("rank 0."), 1, "ddlflow: rank 0."),
        (errors.CheckpointError("damaged."), 1, "ddlflow: damaged."),
        (errors.TrackingError("refused."), 1, "ddlflow: refused."),
        (Interrupted(2), 130, "ddlflow: stopped by SIGINT. The same command goes on from there."),
        (Interrupted(15), 143, "ddlflow: stopped by SIGTERM. The same command goes on from there."),
        (KeyboardInterrupt(), 130, ""),
        (
            ZeroDivisionError("oops"),
            1,
            "ddlflow: ZeroDivisionError: oops\nddlflow: This was not foreseen. The same command "
            "with --debug shows where it happened; please report that.",
        ),
    ],
)
def test_what_ends_a_command(
    ddlflow: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    said: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "run_pipeline", fail)
    for arguments in (["run", "p"], ["run", "p", "--json"]):
        found, out, err = ddlflow(*arguments)
        assert (found, out, err.rstrip("\n")) == (status, "", said)


@pytest.mark.parametrize("arguments", [["--debug", "run", "p"], ["run", "p", "--debug"]])
def test_debug_shows_the_traceback_too(
    ddlflow: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("DDLFLOW_DEBUG", "")  # so that what main sets is taken back
    status, out, err = ddlflow(*arguments)
    assert (status, out) == (2, "")
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("ddlflow: There is no pipeline 'p'")


# ---- results --------------------------------------------------------------------------------


def test_with_json_only_the_result_is_on_standard_output(
    ddlflow: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever prints meanwhile: Python, a library below it, or a process that it starts."""

    def noisy(*_: Any, **__: Any) -> dict[str, Any]:
        print("printed")
        os.write(1, b"written\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
        return {"run_id": "r", "metrics": {"auroc": math.nan, "loss": 0.5}, "stages": [math.inf]}

    monkeypatch.setattr(api, "run_pipeline", noisy)
    status, out, err = ddlflow("run", "p", "--json")
    assert status == 0
    assert json.loads(out) == {
        "run_id": "r",
        "metrics": {"auroc": None, "loss": 0.5},
        "stages": [None],
    }
    assert out.count("\n") == 1
    assert {"printed", "written", "child"} <= set(err.split())


def a_summary(coefficients: CoefficientTable | None = None) -> RunSummary:
    return RunSummary(
        run_id="abc",
        stages=(StageTime("prepare", 1.25, True), StageTime("train", 2.25, False)),
        metrics={"auroc": 0.77123, "rows": 500},
        baseline={"auroc": 0.5},
        notes=(),
        rows_per_s=84500.2,
        model_digest="d1",
        model_uri="runs:/abc/model",
        model="m",
        predictions="p/q",
        report="r/s",
        tracking_uri="sqlite:///x",
        page="mlflow ui --backend-store-uri x",
        coefficients=coefficients,
    )


def test_the_last_screen(ddlflow: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "run_pipeline", lambda *_, **__: a_summary())
    status, out, err = ddlflow("run", "p")
    assert (status, err) == (0, "")
    for words in (
        "prepare cached",
        "train 2.2 s",
        "auroc 0.7712 0.5000",
        "run abc",
        "next ddlflow ui",
    ):
        assert words in " ".join(out.split())
    for value in ("84,500 rows/s", "runs:/abc/model", "p/q", "r/s", "mlflow ui"):
        assert value in out


def test_the_last_screen_of_a_linear_model(
    ddlflow: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = (
        Term("intercept", None, 3.5, None, 0.1, 35.0, 0.0),
        Term("weak", None, 9.0, 0.25, 0.5, 18.0, 0.0125),
        Term("strong", None, -2.0, -0.5),
    )
    table = CoefficientTable(terms, {"town": "Bonn"}, None, "the loss is one of your own", 500)
    monkeypatch.setattr(api, "run_pipeline", lambda *_, **__: a_summary(table))
    status, out, err = ddlflow("run", "p")
    assert (status, err) == (0, "")
    said = " ".join(out.split())
    assert "strong -2 weak 9 0.5 0.0125 Levels of categories are compared with town=Bonn." in said
    assert "not defined: the loss is one of your own." in said
    assert "intercept" not in said


def test_the_last_screen_imports_neither_matplotlib_nor_torch() -> None:
    """A run whose stages all stand ends with it, at once."""
    code = (
        "import sys\n"
        "from ddlflow.cli.output import show_run\n"
        "from ddlflow.data.coefficient_table import CoefficientTable, Term\n"
        "from ddlflow.runs.results import RunSummary\n"
        "values = dict.fromkeys(RunSummary.__slots__, '') | {'stages': (), 'metrics': {}}\n"
        "table = CoefficientTable((Term('a', None, 1.0, 1.0),), {}, None, None, 9)\n"
        "none = {'search': None, 'cross_validation': None}\n"
        "show_run(RunSummary(**values | none | {'rows_per_s': 1.0, 'coefficients': table}))\n"
        "print(*{'matplotlib', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "strongest features" in done.stdout
    assert done.stderr.split() == []


def test_options_reach_the_command(
    ddlflow: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []

    def take(*arguments: Any, **options: Any) -> dict[str, Any]:
        got.append((arguments, options))
        return {}

    monkeypatch.setattr(api, "run_pipeline", take)
    options = ["--on", "big", "--set", "a.b=1", "--set", "c=2", "--fresh", "--json"]
    assert ddlflow("run", "p", *options)[0] == 0
    assert got == [(("p",), {"on": "big", "set": ["a.b=1", "c=2"], "fresh": True})]


def test_check_says_what_is_wrong_and_what_is_next(ddlflow: Callable[..., Said]) -> None:
    changes = ["--set", "engine={use: local, workers: 1}"]
    status, out, err = ddlflow("check", "quickstart", *changes)
    assert (status, err) == (0, "")
    assert out.startswith("ok    files: ")
    assert out.endswith(
        "\nAll is well. Next: ddlflow run quickstart --set 'engine={use: local, workers: 1}'\n"
    )
    status, out, _ = ddlflow("check", "quickstart", "--set", "report.histogram=x", *changes)
    assert status == 2
    assert "\nERROR report: --set report.histogram=x: report.histogram is 'x', which is" in out
    assert out.endswith("\n1 error: nothing was started and nothing written.\n")
    assert list(Path().iterdir()) == []


def test_check_as_json(ddlflow: Callable[..., Said]) -> None:
    status, out, _ = ddlflow("check", "quickstart", "--json", "--set", "engine.use=local")
    found = json.loads(out)
    assert (status, found["ok"]) == (0, True)
    assert found["findings"][0].keys() == {"what", "level", "text"}
    status, out, _ = ddlflow("check", "quickstart", "--json", "--set", "train.epochs=0")
    found = json.loads(out)
    assert (status, found["ok"]) == (2, False)
    assert [finding["level"] for finding in found["findings"]] == ["error"]


def test_data_collider(ddlflow: Callable[..., Said]) -> None:
    make = ["data", "collider", "--rows", "300", "--out", "made"]
    one_worker = ["--set", "engine={use: local, workers: 1}"]
    status, out, _ = ddlflow(*make, *one_worker)
    assert (status, out) == (0, "300 rows in 1 file under made\n")
    assert sum(pq.read_metadata(file).num_rows for file in Path("made").glob("*.parquet")) == 300
    status, out, _ = ddlflow(*make, *one_worker, "--json")
    assert json.loads(out) == {"rows": 300, "files": 1, "out": "made"}


def test_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": [1.5, math.nan], "b": {"c": -math.inf}, "d": "text", "e": None})
    assert json.loads(capsys.readouterr().out) == {
        "a": [1.5, None],
        "b": {"c": None},
        "d": "text",
        "e": None,
    }


# ---- from Python ----------------------------------------------------------------------------


def test_changes_from_python_are_those_of_the_command_line() -> None:
    given = {"train.epochs": 3, "data.features": ["a", "b"], "model": {"use": "mlp"}, "x": None}
    assert api.as_changes(given) == [
        "train.epochs=3",
        'data.features=["a", "b"]',
        'model={"use": "mlp"}',
        "x=null",
    ]
    assert api.as_changes(["a=1"]) == ["a=1"]


def test_help_is_quick_because_it_imports_little() -> None:
    """Design: under half a second. What costs time is imports, and these are counted."""
    code = (
        "import sys; sys.argv = ['ddlflow', '--help']\n"
        "from ddlflow.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'pydantic', 'prefect', 'mlflow', 'dask', 'yaml'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_a_command_ends_with_its_status_once_all_is_said() -> None:
    """It ends without taking its modules apart: threads, exit handlers and pipes come first."""
    code = """
import atexit, sys, threading, time
from ddlflow.cli import app

def main():
    print("said")
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.3), print("a thread"))).start()
    sys.exit({status})

app.main = main
app.command()
"""
    for status, returncode in (("5", 5), ("None", 0), ("'a text'", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{status}", status)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == returncode
        assert done.stdout == "said\na thread\nat exit\n"
        assert done.stderr == ("a text\n" if returncode == 1 else "")
