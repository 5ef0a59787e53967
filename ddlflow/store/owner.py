"""Who owns what stands on the storage: one process, of one start of one machine.

Its name stands on all that it could leave behind::

    PID-STARTED-SPACE-BOOT-MACHINE-HOST

A process number means one process only within one space of them (a container has its own) and one
start of one machine. There the system says whether an owner lives. Of every other owner nothing can
be known but its heart: it touches what is its own, and the clock of the storage, which all hosts
share, tells how long ago. Host names prove nothing: containers share them.
"""

import hashlib
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "lost", "elsewhere"]
BEAT_S = 30.0  # how often an owner touches what is its own
SILENT_S = 600.0  # an owner elsewhere that is silent for so long is lost
# One of this machine's earlier start is lost sooner. Not at once: copies of one machine image may
# share its id and its name, and live.
REBOOTED_S = 3 * BEAT_S
_FIRST_SPACE = 0xEFFFFFFC  # of a machine outside all containers; Source: linux/proc_ns.h
_NAME = re.compile(
    r"(?P<pid>\d+)-(?P<started>\d+)-(?P<space>\d+)-(?P<boot>[^-]+)-(?P<machine>[^-]+)-(?P<host>.+)"
)
_NOWHERE = uuid.uuid4().hex[:8]  # what this process is of, where that cannot be told


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that no other one can be taken for.

    Attributes:
        pid: its number.
        started: when, in ticks since its machine's start: numbers come again.
        space: the space of process numbers that its own is of.
        boot: one start of one machine.
        machine: the machine, over all its starts; "none" where it has no id.
        host: its name, for people.
    """

    pid: int
    started: int
    space: int
    boot: str
    machine: str
    host: str

    @property
    def name(self) -> str:
        place = f"{self.space}-{self.boot}-{self.machine}"
        return f"{self.pid}-{self.started}-{place}-{self.host}"

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether this process sees it, if it lives: its number means one process to both."""
        return (self.boot, self.space) == _here()

    @property
    def is_alive(self) -> bool:
        """Whether an owner that is here lives."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        return _started(self.pid) in {None, self.started}

    @property
    def was_rebooted(self) -> bool:
        """Whether, by all that is known, it is of an earlier start of this very machine."""
        ours = this_owner()
        same = (self.machine, self.host, self.space) == (ours.machine, ours.host, ours.space)
        return same and ours.space == _FIRST_SPACE and self.machine != "none" and not self.is_here


def this_owner() -> Owner:
    """The owner that this process is."""
    return owner_of_process(os.getpid())


def owner_of_process(pid: int) -> Owner:
    """The owner that a process of this host and space is."""
    boot, space = _here()
    return Owner(pid, _started(pid) or 0, space, boot, _machine(), os.uname().nodename)


def owner_of(name: str) -> Owner | None:
    """An owner by its name; None if it is no owner's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    pid, started, space = (int(found[key]) for key in ("pid", "started", "space"))
    return Owner(pid, started, space, found["boot"], found["machine"], found["host"])


def state_of(owner: Owner, path: Path) -> State:
    """Alive; lost; or elsewhere, and heard of a moment ago.

    Args:
        owner: of the file or folder.
        path: what its owner touches, see `beating`, or writes to.

    Raises:
        FileNotFoundError: it is there no more.
    """
    if owner.is_here:
        return "alive" if owner.is_alive else "lost"
    limit_s = REBOOTED_S if owner.was_rebooted else SILENT_S
    return "lost" if silent_s(path) > limit_s else "elsewhere"


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touches a file or folder of this process's own now and again, so that others can tell."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, name="ddlflow-heart", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def silent_s(path: Path) -> float:
    """Seconds since a path was touched, by the clock of the storage, which all hosts share.

    Raises:
        FileNotFoundError: it is there no more.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    return now - path.stat().st_mtime


def _here() -> tuple[str, int]:
    """Where a process number means one process to all: (boot, space).

    Without /proc (macOS), or with that of other processes, it cannot be told: no two processes are
    of one place then, and each knows the others by their hearts alone.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = Path("/proc/self/ns/pid").stat().st_ino
        is_ours = int(Path("/proc/self").readlink().name) == os.getpid()
    except (OSError, ValueError):
        is_ours = False
    return (_short(start), space) if is_ours else (_NOWHERE, 0)


def _machine() -> str:
    try:
        return _short(Path("/etc/machine-id").read_text().strip()) or "none"
    except OSError:
        return "none"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8] if text else ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; -1 if only its number is left.

    Not a time of day: that moves when the clock is set, and a living owner looked dead.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # no /proc, or another user's process that is hidden
        return None
    state, *fields = text.rpartition(")")[2].split()
    return -1 if state in {"Z", "X"} else int(fields[18])
