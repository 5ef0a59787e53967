"""What commands that ended without a word left behind, found and ended.

Ranks and workers end by themselves within a second or two of their command. What stays: Prefect's
flow run, MLflow's run, scratch folders. The next command ends them, or
``ddlflow doctor`` does.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ddlflow.errors import DdlflowError
from ddlflow.runs.check.finding import Finding, counted
from ddlflow.runs.check.site import existing
from ddlflow.runs.finished import STAGE_FILE
from ddlflow.runs.running import VARIABLE, CommandRecord, records, running
from ddlflow.runs.versions import VERSION
from ddlflow.spec.given import Given, called
from ddlflow.spec.load import load_site
from ddlflow.store.owner import SILENT_S, Owner, State, owner_of, state_of
from ddlflow.store.site_storage import storage_of, store_of_site
from ddlflow.store.store import Store
from ddlflow.tracking.pending import send_pending, waiting

END_S = 10.0  # for a process to end after SIGTERM; it is killed after
STAGES = (*VERSION, "reproduce")
# Given a command's name, where its flow run is and the words for it, sets that to Crashed; returns
# how many flow runs it was (``ddlflow.flow.command.end_lost``).
EndLost = Callable[[str, str, str], int]
_SCRATCH = re.compile(r"scratch-(?P<name>.+)-[^-]+")


def doctor(on: Given = "local", changes: Sequence[str] = (), *, end_lost: EndLost) -> list[Finding]:
    """Looks at a site's storage, and ends what lost commands left there, in Prefect and in MLflow.

    Args:
        on: the site.
        changes: ``KEY=VALUE`` on top of it.
        end_lost: of Prefect; it is asked only if a command was lost.

    Returns:
        What was found and done; an error is something that could not be mended.

    Raises:
        SpecError: the site is wrong.
    """
    site = load_site(on, changes)
    storage = storage_of(site)
    free = shutil.disk_usage(existing(storage)).free
    found = [Finding("storage", "ok", f"{storage}: {free / 1e9:.0f} GB free.")]
    if not storage.is_dir():
        return [*found, Finding("commands", "ok", "none has worked here: nothing to do.")]
    found_records, strays = records(storage)
    lost = [record for record in found_records if record.state == "lost"]
    others = [*_not_lost(found_records, strays), *_foreign_scratch(storage)]
    mended: list[Finding] = []
    if lost:
        with running(storage, f"doctor on {called(on)}", ""):  # it may start a server of Prefect
            mended += _end_lost(lost, end_lost)
    mended += _remove_scratch(storage)
    mended += _send(storage / "tracking", site.tracking.uri)
    nothing = [] if mended else [Finding("commands", "ok", "none was lost: nothing to do.")]
    return [
        *found,
        *others,
        *(mended or nothing),
        *_half_done(store_of_site(site), len(found_records) > len(lost)),
    ]


def mend(storage: Path, end_lost: EndLost) -> list[Finding]:
    """Ends what lost commands left, but their MLflow runs: what a command does as it starts.

    Costs next to nothing where nothing was lost.

    Args:
        storage: of the site.
        end_lost: of Prefect; it is asked only if a command was lost.

    Returns:
        What was done, and what could not be mended as an error.
    """
    lost = [record for record in records(storage)[0] if record.state == "lost"]
    return [*_end_lost(lost, end_lost), *_remove_scratch(storage)]


def _not_lost(found: Sequence[CommandRecord], strays: Sequence[Path]) -> Iterator[Finding]:
    """A line for each command that runs, and for each file that is no record."""
    for record in found:
        if record.state == "alive":
            yield Finding("commands", "ok", f"{_named(record)} runs now.")
        elif record.state == "elsewhere":
            text = (
                f"{_named(record)} belongs to another host or container and was heard of in the "
                f"last {SILENT_S / 60:.0f} minutes: left alone."
            )
            yield Finding("commands", "ok", text)
    for path in strays:
        text = f"{path} is no record of a command: left alone. Delete it if it is of no use."
        yield Finding("commands", "note", text)


def _end_lost(lost: Sequence[CommandRecord], end_lost: EndLost) -> Iterator[Finding]:
    """Ends processes first: a new embedded server works on the lost one's database."""
    ended = {record.path: _end_processes(record.command) for record in lost}
    away: dict[str, str] = {}  # a server that does not answer is asked once
    for record in lost:
        name = f"{_named(record)} ended without a word"
        if record.prefect not in away:
            try:
                num = end_lost(record.command.name, record.prefect, _message(record.command))
                record.path.unlink(missing_ok=True)
            except Exception as error:  # Prefect and its HTTP client raise all kinds
                reason = " ".join(str(error).split()) or type(error).__name__
                server = f"{record.prefect or 'Prefect'} does not do it: "
                away[record.prefect] = (
                    reason if isinstance(error, DdlflowError) else server + reason
                )
        if record.prefect in away:
            text = (
                f"{name}, and its flow run could not be ended: {away[record.prefect]}. Mend that "
                f"and run `ddlflow doctor`; or, if it is gone for good, delete {record.path}."
            )
            yield Finding("lost", "error", text)
            continue
        done = [
            f"{counted(num, 'flow run')} set to Crashed" if num else "no flow run of it was open"
        ]
        if ended[record.path]:
            done.append(f"ended: {', '.join(ended[record.path])}")
        yield Finding("lost", "ok", f"{name}: {'; '.join(done)}.")


def _end_processes(command: Owner) -> list[str]:
    """Ends what a lost command of this host started; returns the processes in words."""
    if not command.is_here:
        return []
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    family: dict[psutil.Process, str] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or it ended in this moment
            if process.pid not in ours and process.environ().get(VARIABLE) == command.name:
                family[process] = f"{process.name()} (process {process.pid})"
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=END_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_S)
    return list(family.values())


def _scratch(storage: Path) -> Iterator[tuple[Path, Owner, State]]:
    """The scratch folders, with the commands that made them and what became of these."""
    for folder in sorted(storage.glob("scratch-*")):
        named = _SCRATCH.fullmatch(folder.name)
        command = owner_of(named["name"]) if named else None
        if command is not None:
            with suppress(FileNotFoundError):  # its command ended in this moment
                yield folder, command, state_of(command, folder)


def _foreign_scratch(storage: Path) -> Iterator[Finding]:
    for folder, command, state in _scratch(storage):
        if state == "elsewhere":
            text = (
                f"{folder} belongs to {command.words}, which was heard of in the last "
                f"{SILENT_S / 60:.0f} minutes: left alone."
            )
            yield Finding("scratch", "note", text)


def _remove_scratch(storage: Path) -> Iterator[Finding]:
    """Removes the scratch folders of commands that are no more."""
    for folder, _, state in _scratch(storage):
        if state == "lost":
            shutil.rmtree(folder, ignore_errors=True)
            text = f"{folder} of a command that ended without a word was removed."
            if folder.exists():
                text = f"{folder} of a command that is no more cannot be removed: delete it."
            yield Finding("scratch", "error" if folder.exists() else "ok", text)


def _send(root: Path, uri: str) -> list[Finding]:
    """Sends what waits for MLflow; a run whose command was lost ends as KILLED."""
    said = send_pending(root, uri)
    left = [str(folder) for folder in waiting(root)]
    return [
        Finding("tracking", "error" if any(folder in text for folder in left) else "ok", text)
        for text in said
    ]


def _half_done(storage: Store, busy: bool) -> Iterator[Finding]:
    """The stages that were begun and not finished, with what they hold."""
    how = "half done, or worked on now" if busy else "half done"
    for stage in STAGES:
        for name in storage.at(stage).parts():
            folder = storage.at(f"{stage}/{name}")
            if not name.startswith(".") and not folder.exists(STAGE_FILE):
                size = sum(folder.sizes().values())
                text = (
                    f"{folder.location} ({size / 1e6:,.1f} MB) is {how}. The command that began it "
                    "goes on from there; delete the folder if that will not run again."
                )
                yield Finding(stage, "note", text)


def _named(record: CommandRecord) -> str:
    return f"{record.what} ({record.command.words})"


def _message(command: Owner) -> str:
    return (
        f"Process {command.pid} on {command.host}, which ran this, ended without a word: kill -9, "
        "no memory left, or a reboot. The same command goes on from its last checkpoint."
    )
