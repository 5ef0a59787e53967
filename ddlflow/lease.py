"""One command at a time works in one place, on many hosts: a lease with an owner and a beat.

A lease is a folder with one empty file in it, whose name says all::

    .KEY.lease/TOKEN.BEAT.PROCESS.STARTED.MACHINE.HOST

Why two never hold it: every change is one rename or removal that names the file it expects, and a
file system does that whole or refuses.

- It is *taken* by renaming a folder that has the file in it to the lease's name. That works only
  where there is no folder, or an empty one.
- It *beats* by renaming the file to the next BEAT. That fails where another has taken it over.
- It is *taken over* by renaming the very file that was watched. Of several who try it, one finds
  the file; none does where the owner has beaten once more.
- It is *released* by removing the own file, and the folder if it is empty. A process that slept
  through a take-over names a file that is gone, and harms nobody.

So there is never more than one file, and a server that keeps the storage (NFS) decides as a local
disk does, however old a host's view of the folder is. No clock is compared between hosts, and a
beat takes no room on a full disk.
"""

import contextlib
import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ddlflow.errors import DdlflowError

BEAT_S = 2.0
STALE_S = 30.0  # several times what NFS may show of the past (3 s, as long as a folder changes)
LOOK_S = 0.5
# Leases of this process by their tokens: one that a signal left behind is not waited for.
_tokens: set[str] = set()


@dataclass(frozen=True, slots=True)
class Entry:
    """The name of a lease's file.

    Attributes:
        token: of this one holding.
        beat: how often its owner was heard of.
        process: its number.
        started: when, in ticks since its machine's start: numbers of processes come again.
        machine: one start of one machine, and one space of process numbers on it.
        host: its name, for people.
    """

    token: str
    beat: int
    process: int
    started: str
    machine: str
    host: str

    @property
    def name(self) -> str:
        return f"{self.token}.{self.beat}.{self.process}.{self.started}.{self.machine}.{self.host}"

    @property
    def owner(self) -> str:
        return f"process {self.process} on {self.host}"


def current(folder: Path) -> Entry | None:
    """Who holds the lease; None where nobody does."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):  # noqa: PTH208 # names are all that is wanted
            with contextlib.suppress(ValueError):
                token, beat, process, started, machine, host = name.split(".", 5)
                found.append(Entry(token, int(beat), int(process), started, machine, host))
    # A listing that a beat overtakes may show both names, or none.
    return max(found, key=lambda entry: entry.beat, default=None)


class Lease:
    """A lease that this process holds; a thread keeps it. See `held`."""

    def __init__(
        self, folder: Path, entry: Entry, on_lost: Callable[[DdlflowError], None], beat_s: float
    ) -> None:
        self.folder = folder
        self._entry, self._on_lost, self._beat_s = entry, on_lost, beat_s
        self._mutex = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ddlflow-lease", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Returns if the lease is still ours.

        Raises:
            DdlflowError: it is not; says who holds it.
            OSError: the storage does not answer.
        """
        with self._mutex:
            new = replace(self._entry, beat=self._entry.beat + 1)
            try:
                (self.folder / self._entry.name).rename(self.folder / new.name)
            except FileNotFoundError:
                # Ours all the same, if a signal came between the rename and its note here, or if
                # NFS lost its answer and did it again.
                found = current(self.folder)
                if found is None or found.token != new.token:
                    raise _lost(self.folder, found) from None
                new = found
            self._entry = new

    def release(self) -> None:
        """Lets go of it, if it is still ours; a second call does nothing."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # who comes next finds that this process is gone
            found = current(self.folder)
            if found is not None and found.token == self._entry.token:
                (self.folder / found.name).unlink()
            self.folder.rmdir()

    def _keep(self) -> None:
        while not self._released.wait(self._beat_s):
            try:
                self.confirm()
            except DdlflowError as error:
                self._on_lost(error)
                return
            except OSError:  # a storage with a bad moment does not end healthy work
                continue


@contextlib.contextmanager
def held(
    folder: Path,
    what: str,
    *,
    say: Callable[[str], None],
    on_lost: Callable[[DdlflowError], None],
    beat_s: float = BEAT_S,
    stale_s: float = STALE_S,
) -> Iterator[Lease]:
    """Holds a lease; waits while another process does, unless that one is dead.

    A process of this machine is dead when the machine has no such process. One of another machine
    or container is taken for dead when its lease did not beat for ``stale_s``, on this host's
    clock.

    Args:
        folder: the lease. The folder around it has to be there.
        what: is worked on, for people.
        say: takes a sentence where another process holds it, or did.
        on_lost: called once, in the lease's thread, when another process has taken it over: this
            one slept too long. It has to end the work.
        beat_s: seconds between beats.
        stale_s: seconds without a beat.

    Raises:
        OSError: the storage cannot be written.
    """
    pid = os.getpid()
    mine = Entry(uuid.uuid4().hex, 0, pid, _started(pid) or "", _machine(), os.uname().nodename)
    _tokens.add(mine.token)
    try:
        _wait(folder, mine, what, say, stale_s)
        lease = Lease(folder, mine, on_lost, beat_s)
        try:
            yield lease
        finally:
            lease.release()
    finally:
        _tokens.discard(mine.token)


def _wait(folder: Path, mine: Entry, what: str, say: Callable[[str], None], stale_s: float) -> None:
    """Returns when the lease is taken."""
    told = ""
    seen: Entry | None = None
    silent_s, looked = 0.0, time.monotonic()
    while True:
        found = current(folder)
        if found is None:
            if _take(folder, mine):
                return
        else:
            now = time.monotonic()
            # Each look counts for little: a waiter that slept itself has watched nobody.
            silent_s = silent_s + min(now - looked, 2 * LOOK_S) if found == seen else 0.0
            seen, looked = found, now
            here = found.machine == mine.machine
            if is_gone(found) if here else silent_s >= stale_s:
                if _take_over(folder, found, mine):
                    why = "is gone" if here else f"has not been heard of for {silent_s:.0f} s"
                    say(f"taken over from {found.owner}, which {why}: {what}")
                    return
            elif found.token != told:
                say(f"waiting: {found.owner} works on {what}")
                told = found.token
        time.sleep(LOOK_S)


def _take(folder: Path, mine: Entry) -> bool:
    """Takes a lease that nobody holds; whether it did."""
    draft = folder.with_name(f"{folder.name}.{mine.token}")
    draft.mkdir()
    try:
        (draft / mine.name).touch()
        draft.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            (draft / mine.name).unlink(missing_ok=True)
            draft.rmdir()
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
            raise
        return _is_ours(folder, mine)
    return True


def _take_over(folder: Path, found: Entry, mine: Entry) -> bool:
    """Takes the lease from the very entry that was found; whether it did."""
    try:
        (folder / found.name).rename(folder / mine.name)
    except FileNotFoundError:
        return _is_ours(folder, mine)
    return True


def _is_ours(folder: Path, mine: Entry) -> bool:
    """Whether it was taken after all: NFS asks again where an answer was lost, and hears no then.

    Else the owner beat once more or let go, or another was faster.
    """
    found = current(folder)
    return found is not None and found.token == mine.token


def is_gone(entry: Entry) -> bool:
    """Whether the process of an entry of this machine has ended."""
    if entry.process == os.getpid():
        return entry.token not in _tokens
    try:
        os.kill(entry.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    return _started(entry.process) not in {None, entry.started}


def _started(process: int) -> str | None:
    """When a process started, in ticks since the machine did; "ended" if only its number is left.

    Not psutil's time of day: that moves when the clock is set, and a living owner looked dead.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # no /proc, or another user's process that is hidden
        return None
    state, *fields = text.rpartition(")")[2].split()
    return "ended" if state in {"Z", "X"} else fields[18]


def _machine() -> str:
    """Names where a process number means one process: containers of a machine have their own.

    Without /proc (macOS) it cannot be told: no two processes are of one machine then, and all are
    watched for their beats.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return uuid.uuid4().hex[:16]
    return hashlib.sha256(f"{start} {space}".encode()).hexdigest()[:16]


def _lost(folder: Path, found: Entry | None) -> DdlflowError:
    if found is None:
        return DdlflowError(
            f"{folder} is gone: it was removed while this process worked under it, or another one "
            "took it over and is done. Nothing more was written here. Run the same command again: "
            "it goes on from what is finished."
        )
    return DdlflowError(
        f"{found.owner} has taken over the work of this one, which was not heard of for long "
        f"(suspended, or cut off from the storage): {folder}. Nothing more was written here. "
        "Let that process end, or end it and run the same command again."
    )
