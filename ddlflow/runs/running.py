"""Which commands run now, and which ended without a word (kill -9, no memory, a reboot).

A command is named after its process (`ddlflow.store.owner`), and the name stands on all that it
could leave behind::

    <storage>/commands/NAME.json    its record, while it runs
    <storage>/scratch-NAME-*        its scratch folders
    DDLFLOW_COMMAND=NAME            in the environment of each process that it starts
    command:NAME                    the tag of its Prefect flow run

`ddlflow.runs.doctor` ends what a lost command left.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ddlflow.store.owner import Owner, State, beating, owner_of, state_of, this_owner

VARIABLE = "DDLFLOW_COMMAND"


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """What a command says of itself while it runs.

    Attributes:
        path: of the record.
        command: that left it.
        what: in words: "run quickstart on local".
        prefect: where its flow run is: a server's address, or the folder of the embedded one;
            empty if the record is damaged.
        state: alive, lost, or elsewhere: where nothing else can be known of it, and heard of a
            moment ago.
    """

    path: Path
    command: Owner
    what: str
    prefect: str
    state: State


@contextmanager
def running(storage: Path, what: str, prefect: str) -> Iterator[Owner]:
    """Leaves a record for as long as the command runs, and its name in the environment.

    A storage that cannot be written has no record; the command's own work says why it fails.

    Args:
        storage: of the site.
        what: the command does, in words.
        prefect: where its flow run is.
    """
    command = this_owner()
    path = folder_of(storage) / f"{command.name}.json"
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = command.name
    try:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"what": what, "prefect": prefect}))
        with beating(path):
            yield command
    finally:
        with suppress(OSError):
            path.unlink()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def records(storage: Path) -> tuple[list[CommandRecord], list[Path]]:
    """The records in a storage, but this command's own, and files there that are none.

    A record that is damaged, as by a reboot, still tells by its name whose it is.
    """
    found, others = [], []
    for path in sorted(folder_of(storage).glob("*")):
        command = owner_of(path.stem)
        if command is None or path.suffix != ".json":
            others.append(path)
        elif command != this_owner():
            with suppress(FileNotFoundError):  # it ended in this moment
                found.append(_read(path, command))
    return found, others


def folder_of(storage: Path) -> Path:
    """Where the records are."""
    return storage / "commands"


def _read(path: Path, command: Owner) -> CommandRecord:
    try:
        said = json.loads(path.read_text())
        what, prefect = str(said["what"]), str(said["prefect"])
    except (ValueError, TypeError, KeyError, PermissionError):
        what, prefect = f"a command whose record {path} is damaged", ""
    return CommandRecord(path, command, what, prefect, state_of(command, path))
