"""The Prefect server that commands share: real ones, started, killed, hung and left alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddlflow.errors import DdlflowError
from ddlflow.flow import server as servers
from ddlflow.flow.command import prefect_findings
from ddlflow.flow.server import IDLE_VARIABLE, shared_server, wait_until_ready
from ddlflow.flow.server_process import Asked, end_when_idle
from ddlflow.store.owner import owner_of_process, this_owner


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv(IDLE_VARIABLE, "1")
    return tmp_path / "prefect"


OTHER = """
import json, sys
from ddlflow.flow.server import shared_server, wait_until_ready
with shared_server() as server:
    found = wait_until_ready(server)
    print(json.dumps([found.address, server.is_new, found.process.pid]))
"""


def test_commands_share_one_that_is_replaced_when_it_dies_or_hangs_and_ends_when_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DDLFLOW_COMMAND", "of this command, not of the server")
    monkeypatch.setattr(servers, "_HUNG_S", 2.0)
    with shared_server() as first:
        assert first.is_new
        assert wait_until_ready(first) == first
        assert "DDLFLOW_COMMAND" not in psutil.Process(first.process.pid).environ()
        assert first.address.startswith("http://127.0.0.1:")
        command = [sys.executable, "-c", OTHER]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [first.address, False, first.process.pid]
        assert servers.num_users(first.folder) == 1  # the other has gone
        (finding,) = prefect_findings()
        assert "used by 1 command." in finding.text

        os.kill(first.process.pid, signal.SIGKILL)
        give_up = time.monotonic() + 30
        while first.process.is_alive:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        with shared_server() as second:
            assert second.is_new
            assert wait_until_ready(second).address != first.address
            assert servers.running_server() == replace(second, is_new=False)
        os.kill(second.process.pid, signal.SIGSTOP)
        with shared_server() as hung:
            assert not hung.is_new
            third = wait_until_ready(hung)
        assert third.process != second.process
        assert not second.process.is_alive
        time.sleep(3)  # longer than it may be idle, and it is in use
        assert third.answers
    give_up = time.monotonic() + 30
    while third.process.is_alive:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert servers.running_server() is None
    assert not (third.folder / "server.json").exists()
    assert list(prefect_findings()) == []


def test_one_that_cannot_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://")
    with (
        shared_server() as server,
        pytest.raises(DdlflowError, match=r"server ended as it started \(.+\)\. Look into .+\.log"),
    ):
        wait_until_ready(server)


def test_other_settings_and_versions_have_a_server_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {servers._folder()}
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    folders.add(servers._folder())
    assert len(folders) == 1
    monkeypatch.setenv("PREFECT_SERVER_API_KEEPALIVE_TIMEOUT", "7")
    folders.add(servers._folder())
    monkeypatch.setattr("ddlflow.__version__", "0.0.0")
    folders.add(servers._folder())
    assert len(folders) == 3


def test_what_the_user_named_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://here/api")
    assert servers.named_by_the_user() == "http://here/api"
    monkeypatch.delenv("PREFECT_API_URL")
    home.mkdir()
    profile = 'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://team:4200/api"\n'
    (home / "profiles.toml").write_text(profile)
    code = "from ddlflow.flow.server import named_by_the_user as n; print(n())"
    for text, expected in ((profile, "http://team:4200/api"), ("", "None")):
        (home / "profiles.toml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_the_time_that_it_may_be_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IDLE_VARIABLE, "soon")
    with pytest.raises(DdlflowError, match="expected seconds"):
        servers.idle_s()
    monkeypatch.delenv(IDLE_VARIABLE)
    monkeypatch.setenv("CI", "true")
    assert servers.idle_s() == 0.0
    monkeypatch.delenv("CI")
    assert servers.idle_s() == servers.IDLE_S


class Idle:
    """`end_when_idle` in a thread."""

    def __init__(self, folder: Path, idle_s: float) -> None:
        (folder / "users").mkdir(parents=True)
        (folder / "server.json").touch()
        self.folder, self.ended = folder, threading.Event()
        self.asked = Asked(self.app)
        arguments = (folder, idle_s, self.asked, self.ended.set)
        threading.Thread(target=end_when_idle, args=arguments, daemon=True).start()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers nothing."""


def test_a_server_in_use_stays_and_what_killed_commands_left_does_not_count(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as command:
        idle = Idle(folder, 0.0)
        user = folder / "users" / f"1_{owner_of_process(command.pid).name}"
        user.touch()
        lost = replace(this_owner(), started=1)
        for name in (f"2_{lost.name}", "no owner's name"):
            (folder / "users" / name).touch()
        assert not idle.ended.wait(2.0)
        assert list((folder / "users").iterdir()) == [user]
        command.kill()
    assert idle.ended.wait(20)
    assert not (folder / "server.json").exists()


def test_requests_keep_a_server(tmp_path: Path) -> None:
    idle = Idle(tmp_path / "s", 2.0)
    for _ in range(8):  # a page that is open in a browser
        idle.asked.at = time.monotonic()
        assert not idle.ended.wait(0.5)
    assert idle.ended.wait(20)


def test_a_server_whose_folder_is_gone_ends(tmp_path: Path) -> None:
    idle = Idle(tmp_path / "s", 600.0)
    (tmp_path / "s").rename(tmp_path / "t")
    assert idle.ended.wait(20)


def test_a_port_of_somebody_else_is_no_server_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        folder = servers._folder()
        folder.mkdir(parents=True)
        told = {"address": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
        told["process"] = replace(this_owner(), started=1).name
        (folder / "server.json").write_text(json.dumps(told))
        assert servers.running_server() is None
