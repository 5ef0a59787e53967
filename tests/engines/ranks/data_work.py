"""Functions for map, importable on the workers."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


class OddError(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{number} is odd: {why}")


def square(x: int) -> int:
    time.sleep(0.01 * (x % 3))
    return x * x


def big(x: int) -> bytes:
    return bytes(2_000_000) + str(x).encode()


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError("three is not allowed")
    return x


def fail_with(kind: str) -> Any:
    from ddlflow.errors import DataError

    if kind == "data":
        raise DataError("rows.csv: line 3 has no label.")
    if kind == "odd":
        raise OddError(3, "as it is")
    raise SystemExit(4)


def die_once(item: tuple[str, int]) -> int:
    folder, x = item
    flag = Path(folder) / "died"
    if x == 2 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_always(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def mark(item: tuple[str, int]) -> int:
    folder, x = item
    (Path(folder) / str(x)).touch()
    return x


def slow_mark(item: tuple[str, int]) -> int:
    folder, x = item
    if x > 0:
        time.sleep(0.3)
    return mark((folder, x))


def speak(x: int) -> int:
    print("work prints")
    return x


def variable(name: str) -> str | None:
    return os.environ.get(name)


def where() -> int:
    """This process, asked without an item."""
    return os.getpid()


def unknown() -> int:
    raise ValueError("nobody knows")


def parents(_: int) -> int:
    """The process that this one was started by."""
    return os.getppid()


def has_imported(module: str) -> bool:
    """Whether this worker has it; not at once, so that each worker gets an item."""
    time.sleep(0.1)
    return module in sys.modules
