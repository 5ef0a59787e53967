"""Records of commands: whose they are, who lives, who is lost."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ddlflow.runs import running
from ddlflow.runs.running import VARIABLE, folder_of, records
from ddlflow.store import owner
from ddlflow.store.owner import Owner, owner_of, this_owner


def write(storage: Path, command: Owner, text: str | None = None) -> Path:
    path = folder_of(storage) / f"{command.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"what": "run x on y", "prefect": "p"}) if text is None else text)
    return path


def another() -> Owner:
    """A command of this host that is no more: its process id is ours, its start is not."""
    ours = this_owner()
    return replace(ours, started=ours.started + 1_000)


def test_a_name_tells_the_command() -> None:
    command = Owner(12, 3456, 4026531836, "0a1b2c3d", "none", "node-7.cluster")
    assert owner_of(command.name) == command
    assert owner_of("12-34") is None
    assert owner_of("notes") is None


def test_a_command_lives_as_long_as_its_process() -> None:
    code = "from ddlflow.store.owner import this_owner as t; print(t().name, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    command = owner_of(process.stdout.readline().strip())
    assert command is not None
    assert command.pid == process.pid
    assert command.is_alive
    process.kill()
    deadline = time.monotonic() + 30
    while command.is_alive and time.monotonic() < deadline:  # not waited for: a zombie
        time.sleep(0.01)
    assert not command.is_alive
    process.wait()
    assert not command.is_alive
    process.stdin.close()
    process.stdout.close()


def test_a_process_id_that_another_process_has_now() -> None:
    assert this_owner().is_alive
    assert not another().is_alive


def test_a_record_stands_while_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "before")
    path = folder_of(tmp_path) / f"{this_owner().name}.json"

    def work(error: type[BaseException]) -> None:
        with running.running(tmp_path, "run x on y", "http://p/api") as command:
            assert os.environ[VARIABLE] == command.name
            assert json.loads(path.read_text()) == {"what": "run x on y", "prefect": "http://p/api"}
            assert records(tmp_path) == ([], [])  # its own is none of its business
            raise error

    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            work(error)
        assert not path.exists()
        assert os.environ[VARIABLE] == "before"


def test_a_storage_that_cannot_be_written_is_told_by_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running.running(tmp_path / "file", "run x on y", ""):
        assert (tmp_path / "file").read_text() == ""


def test_the_living_and_the_lost(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    started = owner._started(parent.pid)
    assert started is not None
    living = replace(this_owner(), pid=parent.pid, started=started)
    paths = {write(tmp_path, living): "alive", write(tmp_path, another()): "lost"}
    found, others = records(tmp_path)
    assert {record.path: record.state for record in found} == paths
    assert {(record.what, record.prefect) for record in found} == {("run x on y", "p")}
    assert others == []
    parent.stdin.close()
    parent.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"what": "run x on y"}'])
def test_a_damaged_record_still_tells_whose_it_is(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, another(), text)
    (record,), others = records(tmp_path)
    assert (record.state, record.prefect, others) == ("lost", "", [])
    assert str(path) in record.what


def test_files_that_are_no_records_are_named(tmp_path: Path) -> None:
    write(tmp_path, another())
    strays = [folder_of(tmp_path) / name for name in ("1-2-host.txt", "notes.json")]
    for path in strays:
        path.write_text("")
    assert records(tmp_path)[1] == strays


def test_a_owner_of_another_host_is_lost_once_it_is_silent(tmp_path: Path) -> None:
    path = write(tmp_path, replace(this_owner(), boot="elsewhere"))
    assert records(tmp_path)[0][0].state == "elsewhere"
    then = time.time() - owner.SILENT_S - 60
    os.utime(path, (then, then))
    assert records(tmp_path)[0][0].state == "lost"


def test_a_command_is_heard_of_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    with running.running(tmp_path, "run x on y", "") as command:
        path = folder_of(tmp_path) / f"{command.name}.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
