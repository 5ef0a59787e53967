"""Dask's own command line, for every engine test that needs a cluster at an address."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

RANKS = str(Path(__file__).parent / "ranks")


@contextmanager
def _dask_by_command_line(
    folder: Path, num_workers: int, *options_of_both: str
) -> Iterator[tuple[str, int]]:
    """A scheduler and workers as an administrator starts them: its address and process."""
    at = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    environment = os.environ | {"PYTHONPATH": RANKS}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "cwd": folder}
    with (folder / "log").open("wb") as log:
        commands = [
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            [*dask, "worker", "--nworkers", str(num_workers), "--nthreads", "1", "--no-dashboard"],
        ]
        processes = [
            subprocess.Popen(
                [*command, *options_of_both, "--scheduler-file", str(at)], stderr=log, **options
            )
            for command in commands
        ]
        try:
            give_up = time.monotonic() + 60
            while not at.exists() or not at.read_text().strip():
                assert time.monotonic() < give_up, (folder / "log").read_text()
                time.sleep(0.05)
            yield json.loads(at.read_text())["address"], processes[0].pid
        finally:
            family = [p for child in processes for p in psutil.Process(child.pid).children(True)]
            for process in processes:
                process.kill()
                process.wait()
            for process in family:
                if process.is_running():
                    process.kill()


@pytest.fixture(scope="session")
def dask_by_command_line() -> Callable[..., Any]:
    """``with dask_by_command_line(folder, num_workers) as (address, scheduler_pid)``."""
    return _dask_by_command_line
