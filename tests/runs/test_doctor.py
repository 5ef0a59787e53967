"""`ddlflow doctor` where no Prefect is needed; tests/flows has it on commands that were killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from ddlflow.cli import app
from ddlflow.runs import doctor
from ddlflow.runs.check.finding import Finding
from ddlflow.runs.running import VARIABLE, folder_of
from ddlflow.store.owner import Owner, owner_of, this_owner
from ddlflow.tracking.records import RunBegan
from ddlflow.tracking.spool import Spool


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    site = {"engine": {"use": "local"}, "storage": "kept", "tracking": tracking}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))


@pytest.fixture
def living() -> Iterator[Owner]:
    """A command that runs, as far as its process tells; its environment carries its name."""
    code = (
        "import os, sys; from ddlflow.store.owner import this_owner as t; name = t().name\n"
        f"if {VARIABLE!r} not in os.environ:\n"
        f"    os.environ[{VARIABLE!r}] = name; os.execv(sys.executable, sys.orig_argv)\n"
        "print(name, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        command = owner_of(process.stdout.readline().strip())
        assert command is not None
        yield command
        process.kill()


def lost() -> Owner:
    ours = this_owner()
    return replace(ours, started=ours.started + 1_000)


def no_prefect(command: str, place: str, message: str) -> int:
    raise AssertionError("nothing of Prefect is to be ended here")


def said(found: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in found if finding.what == what]


def test_nothing_has_run_and_nothing_is_written() -> None:
    found = doctor.doctor(end_lost=no_prefect)
    assert [finding.what for finding in found] == ["storage", "commands"]
    assert "GB free" in found[0].text
    assert "nothing to do" in found[1].text
    assert not Path("kept").exists()


def test_a_command_that_runs_is_left_alone(living: Owner) -> None:
    folder_of(Path("kept")).mkdir(parents=True)
    record = folder_of(Path("kept")) / f"{living.name}.json"
    record.write_text(json.dumps({"what": "run x on y", "prefect": ""}))
    scratch = Path(f"kept/scratch-{living.name}-abc_1")
    scratch.mkdir()
    commands = said(doctor.doctor(end_lost=no_prefect), "commands")
    assert commands[0] == (
        "ok",
        f"run x on y (process {living.pid} on {living.host}) runs now.",
    )
    assert "nothing to do" in commands[1][1]
    assert living.is_alive
    assert record.exists()
    assert scratch.exists()


def test_the_processes_of_a_lost_command_are_ended_and_no_others(living: Owner) -> None:
    assert doctor._end_processes(lost()) == []
    assert doctor._end_processes(replace(living, boot="elsewhere")) == []
    assert living.is_alive
    (ended,) = doctor._end_processes(living)
    assert f"(process {living.pid})" in ended
    assert not living.is_alive
    assert psutil.Process().is_running()


def test_what_belongs_elsewhere_is_named_and_left() -> None:
    other = replace(this_owner(), boot="elsewhere")
    folder_of(Path("kept")).mkdir(parents=True)
    record = folder_of(Path("kept")) / f"{other.name}.json"
    record.write_text("")
    (folder_of(Path("kept")) / "notes").write_text("")
    scratch = Path(f"kept/scratch-{other.name}-abc_1")
    scratch.mkdir()
    found = doctor.doctor(end_lost=no_prefect)
    texts = [text for _, text in said(found, "commands")]
    assert "belongs to another host or container" in texts[0]
    assert f"{record.absolute()} is damaged" in texts[0]
    assert "notes is no record of a command" in texts[1]
    ((level, text),) = said(found, "scratch")
    assert level == "note"
    assert "which was heard of in the last 10 minutes: left alone" in text
    assert record.exists()
    assert scratch.exists()


def test_scratch_folders_of_lost_commands_are_removed() -> None:
    scratch = Path(f"kept/scratch-{lost().name}-abc_1")
    (scratch / "model").mkdir(parents=True)
    Path("kept/scratch-mine").mkdir()  # nobody's name
    assert [level for level, _ in said(doctor.doctor(end_lost=no_prefect), "scratch")] == ["ok"]
    assert [path.name for path in Path("kept").iterdir()] == ["scratch-mine"]


def test_stages_that_are_half_done_are_named_with_their_size() -> None:
    for name in ("a", "b"):
        Path("kept/train", name).mkdir(parents=True)
        Path("kept/train", name, "weights").write_bytes(bytes(2_500_000))
    Path("kept/train/a/stage.json").write_text("{}")
    Path("kept/train/.b.lock").write_text("")
    ((level, text),) = said(doctor.doctor(end_lost=no_prefect), "train")
    assert level == "note"
    assert "train/b (2.5 MB) is half done" in text


def test_tracking_records_that_cannot_be_sent_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(Path("kept/tracking/one").absolute())
    uri = "http://127.0.0.1:9"
    spool.append(RunBegan(t=1, id="ab", uri=uri, experiment="e", name="n", tags={}))
    spool.close()
    monkeypatch.setattr(sys, "argv", ["ddlflow", "doctor", "--json"])
    with pytest.raises(SystemExit) as exited:
        app.main()
    answer = json.loads(capsys.readouterr().out)
    assert exited.value.code == 1
    assert not answer["ok"]
    (text,) = [f["text"] for f in answer["findings"] if f["level"] == "error"]
    assert "tracking records of the run n wait in" in text
    assert f"{uri} does not answer" in text
