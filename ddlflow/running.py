"""Which commands run now, and which ended without a word (kill -9, no memory, a reboot).

A command is named after its process, and the name stands on all that it could leave behind::

    <storage>/commands/NAME.json    its record, while it runs
    <storage>/scratch-NAME-*        its scratch folders
    DDLFLOW_COMMAND=NAME            in the environment of each process that it starts
    command:NAME                    the tag of its Prefect flow run

`ddlflow.doctor` ends what a lost command left.
"""

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

VARIABLE = "DDLFLOW_COMMAND"
BEAT_S = 30.0  # how often a command touches its record
SILENT_S = 600.0  # a command of another host that is silent for so long is lost
_SAME_START = 100  # hundredths of a second; a process id is not given twice within that
_NAME = re.compile(r"(?P<pid>\d+)-(?P<started>\d+)-(?P<host>.+)")


@dataclass(frozen=True, slots=True)
class Command:
    """A command by its process.

    Attributes:
        pid: its number, which another process may have later.
        started: in 1/100 s after the start of the machine: no step of the clock changes that.
        host: the machine's name.
    """

    pid: int
    started: int
    host: str

    @property
    def name(self) -> str:
        return f"{self.pid}-{self.started}-{self.host}"

    @property
    def is_of_this_host(self) -> bool:
        return self.host == os.uname().nodename

    @property
    def is_alive(self) -> bool:
        """Whether its process runs on this host."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(_started(process) - self.started) <= _SAME_START
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return bool(psutil.pid_exists(self.pid))  # another user's, where those are hidden


@dataclass(frozen=True, slots=True)
class Record:
    """What a command says of itself while it runs.

    Attributes:
        path: of the record.
        command: that left it.
        what: in words: "run quickstart on local".
        prefect: where its flow run is: a server's address, or the folder of the embedded one;
            empty if the record is damaged.
        state: alive, lost, or elsewhere: on a host of which nothing else can be known, and heard
            of a moment ago.
    """

    path: Path
    command: Command
    what: str
    prefect: str
    state: Literal["alive", "lost", "elsewhere"]


def this_command() -> Command:
    """The command of this process."""
    process = psutil.Process()
    return Command(process.pid, _started(process), os.uname().nodename)


def command_of(name: str) -> Command | None:
    """A command by its name; None if it is no command's name."""
    found = _NAME.fullmatch(name)
    return Command(int(found["pid"]), int(found["started"]), found["host"]) if found else None


@contextmanager
def running(storage: Path, what: str, prefect: str) -> Iterator[Command]:
    """Leaves a record for as long as the command runs, and its name in the environment.

    A storage that cannot be written has no record; the command's own work says why it fails.

    Args:
        storage: of the site.
        what: the command does, in words.
        prefect: where its flow run is.
    """
    command = this_command()
    path = folder_of(storage) / f"{command.name}.json"
    before = os.environ.get(VARIABLE)
    over = threading.Event()
    os.environ[VARIABLE] = command.name
    try:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"what": what, "prefect": prefect}))
        threading.Thread(target=_beat, args=(path, over), daemon=True).start()
        yield command
    finally:
        over.set()
        with suppress(OSError):
            path.unlink()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def records(storage: Path) -> tuple[list[Record], list[Path]]:
    """The records in a storage, but this command's own, and files there that are none.

    A record that is damaged, as by a reboot, still tells by its name whose it is.
    """
    found, others = [], []
    for path in sorted(folder_of(storage).glob("*")):
        command = command_of(path.stem)
        if command is None or path.suffix != ".json":
            others.append(path)
        elif command != this_command():
            with suppress(FileNotFoundError):  # it ended in this moment
                found.append(_read(path, command))
    return found, others


def folder_of(storage: Path) -> Path:
    """Where the records are."""
    return storage / "commands"


def _read(path: Path, command: Command) -> Record:
    try:
        said = json.loads(path.read_text())
        what, prefect = str(said["what"]), str(said["prefect"])
    except (ValueError, TypeError, KeyError, PermissionError):
        what, prefect = f"a command whose record {path} is damaged", ""
    state: Literal["alive", "lost", "elsewhere"]
    if command.is_of_this_host:
        state = "alive" if command.is_alive else "lost"
    else:
        state = "lost" if _silent_s(path) > SILENT_S else "elsewhere"
    return Record(path, command, what, prefect, state)


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _silent_s(path: Path) -> float:
    """Seconds since a record was touched, by the clock of the storage, which all hosts share."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    return now - path.stat().st_mtime


def _started(process: psutil.Process) -> int:
    hundredths: float = (process.create_time() - psutil.boot_time()) * 100
    return round(hundredths)
