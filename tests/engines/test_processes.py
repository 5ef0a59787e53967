"""What an engine leaves behind: nothing, however its driver ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

DRIVER = str(Path(__file__).parent / "driver.py")
engines = pytest.mark.parametrize("use", ["local", "dask", "spark"])


def start(use: str, what: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", DRIVER, use, what, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def events_until(driver: subprocess.Popen[str], name: str, times: int) -> list[dict[str, Any]]:
    assert driver.stdout is not None
    events: list[dict[str, Any]] = []
    for line in driver.stdout:
        events.append(json.loads(line))
        if sum(event["event"] == name for event in events) == times:
            return events
    raise AssertionError(f"the driver ended: {events} {driver.communicate()[1]}")


def wait_until_gone(pids: list[int]) -> None:
    give_up = time.monotonic() + 20
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        dead = all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in left)
        assert dead or time.monotonic() < give_up, f"still there: {left}"
        if dead:
            return
        time.sleep(0.1)


@engines
def test_close_leaves_no_process_and_no_word(use: str, tmp_path: Path) -> None:
    with start(use, "close", tmp_path) as driver:
        out, err = driver.communicate(timeout=120)
    squares, end, closed = map(json.loads, out.splitlines())
    assert squares["squares"] == [0, 1, 4, 9]
    assert end == {"event": "end", "stopped": False, "values": [[0, 1], [1]]}
    assert closed["left"] == []
    wait_until_gone(closed["pids"])
    assert err == ""
    assert driver.returncode == 0


@engines
def test_nothing_outlives_a_killed_driver(use: str, tmp_path: Path) -> None:
    with start(use, "hang", tmp_path) as driver:
        events = events_until(driver, "progress", times=2)
        ranks = [event["pid"] for event in events if event["event"] == "ready"]
        assert len(ranks) == 2
        pids = [*events[0]["children"], *ranks]
        assert all(psutil.pid_exists(pid) for pid in pids)
        driver.kill()
    wait_until_gone(pids)


def test_no_rank_on_a_cluster_outlives_its_driver(
    dask_by_command_line: Any, tmp_path: Path
) -> None:
    with dask_by_command_line(tmp_path, 2) as (address, _):
        with start(address, "hang", tmp_path) as driver:
            events = events_until(driver, "progress", times=2)
            ranks = [event for event in events if event["event"] == "ready"]
            driver.kill()
        wait_until_gone([rank["pid"] for rank in ranks])
        assert all(psutil.pid_exists(rank["worker_pid"]) for rank in ranks)


def test_a_lost_scheduler_ends_the_gang(dask_by_command_line: Any, tmp_path: Path) -> None:
    with dask_by_command_line(tmp_path, 2) as (address, scheduler_pid):
        with start(address, "hang", tmp_path) as driver:
            events = events_until(driver, "progress", times=2)
            ranks = [event["pid"] for event in events if event["event"] == "ready"]
            os.kill(scheduler_pid, signal.SIGKILL)
            err = driver.communicate(timeout=60)[1]
        wait_until_gone(ranks)
    assert driver.returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"ddlflow.errors.EngineError: dask at {address}, 2 of 2 workers")
    assert "no answer from the cluster" in last


@engines
def test_ctrl_c_is_left_to_the_driver(use: str, tmp_path: Path) -> None:
    with start(use, "interrupt", tmp_path) as driver:
        events_until(driver, "ready", times=2)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does it
        out, err = driver.communicate(timeout=120)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["stopped", "stopped", "end", "closed"]
    assert events[2] == {"event": "end", "stopped": True, "values": None}
    assert err == ""
