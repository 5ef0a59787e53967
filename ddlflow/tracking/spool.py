"""The log file of one run: every record lands here first, and stays until MLflow has it.

A spool is a folder::

    ops.jsonl      one JSON object a record, appended; the first describes the run
    sent.json      how many bytes of ops.jsonl MLflow has, and the ids it gave
    refused.jsonl  records that MLflow will never take, each with the reason

A process that has it open holds the lease ``.NAME.lease`` beside it. A lock of the system would not
do: on network disks it may bind one host alone, and a living run was closed as KILLED by another.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ddlflow.errors import DdlflowError, TrackingError
from ddlflow.store.lease import Lease, held_now, holder
from ddlflow.store.owner import BEAT_S
from ddlflow.tracking.records import SpoolRecord, from_json, to_json


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Sent:
    """How far MLflow is."""

    offset: int = 0  # bytes of ops.jsonl that it has
    run_id: str | None = None
    experiment_id: str | None = None
    creating: bool = False  # a request to create the run was made, and may have come through


class Spool:
    """One run's log file, opened for writing by this process alone. Safe to use from threads."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it; a last line that a crash cut off is removed.

        Raises:
            TrackingError: The folder cannot be written, or another process has it open.
        """
        self.folder = folder
        self._records = folder / "ops.jsonl"
        self._mutex = threading.Lock()
        self._lost: str | None = None
        self._lease: Lease | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lease = held_now(_lease(folder), on_lost=self._on_lost, beat_s=BEAT_S)
            if self._lease is None:
                raise TrackingError(_is_written(folder))
            self._file = self._records.open("ab")
            self._file.truncate(_whole_lines(self._records))
            self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            if self._lease is not None:
                self._lease.release()
            raise TrackingError(
                f"The tracking records cannot be written to {folder}: {error.strerror}. "
                "Make the site's storage writable, or choose another one."
            ) from error
        self.sent = read_sent(folder)

    def append(self, record: SpoolRecord) -> int:
        """Write one record through to the operating system; returns the file's new length.

        Not fsynced: a killed process loses nothing, a machine without power its last seconds.

        Raises:
            OSError: the disk is full, or the records are another process's now.
        """
        if self._lost:
            raise OSError(self._lost)
        line = (
            json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        )
        with self._mutex:
            self._file.write(line)
            self._file.flush()
            self._size += len(line)
            return self._size

    def waiting(self, limit: int = 2000) -> list[tuple[SpoolRecord, int]]:
        """The next records to send, each with the offset behind it.

        Raises:
            TrackingError: they are another process's now.
        """
        if self._lost:
            raise TrackingError(f"{self._lost}.")
        taken = []
        for pair in _read(self._records, self.sent.offset):
            taken.append(pair)
            if len(taken) == limit:
                break
        return taken

    def num_waiting(self) -> int:
        return sum(1 for _ in _read(self._records, self.sent.offset))

    def all_records(self) -> Iterator[SpoolRecord]:
        return (record for record, _ in _read(self._records, 0))

    @property
    def is_sent(self) -> bool:
        return self.sent.offset >= self._size

    @property
    def is_lost(self) -> bool:
        """Whether the records are another process's now; nothing may be done with them."""
        return self._lost is not None

    def _on_lost(self, error: DdlflowError) -> None:
        self._lost = str(error).rstrip(".")

    def save(self, sent: Sent) -> None:
        """Remember how far MLflow is, by rename: a crash leaves the old or the new."""
        new = self.folder / "sent.json.new"
        new.write_text(json.dumps(asdict(sent)), encoding="utf-8")
        new.replace(self.folder / "sent.json")
        self.sent = sent

    def refuse(self, record: SpoolRecord, reason: str) -> None:
        """Set a record aside that MLflow will not take, so that those behind it go on."""
        with (self.folder / "refused.jsonl").open("a", encoding="utf-8") as file:
            refused = {"reason": reason, "record": to_json(record)}
            file.write(json.dumps(refused, ensure_ascii=False) + "\n")

    @property
    def has_refused(self) -> bool:
        return (self.folder / "refused.jsonl").exists()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        self._file.close()
        if self._lease is not None:
            self._lease.release()


def unfinished(root: Path) -> list[Path]:
    """The spools in ``root/*`` that hold what MLflow lacks, oldest first. Opens none of them."""
    found = []
    for records in root.glob("*/ops.jsonl"):
        size = _whole_lines(records)
        if size and (read_sent(records.parent).offset < size or not _has_ended(records)):
            found.append((_first_time(records), records.parent))
    return [folder for _, folder in sorted(found)]


def read_sent(folder: Path) -> Sent:
    try:
        return Sent(**json.loads((folder / "sent.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Sent()
    except (ValueError, TypeError):  # the machine lost power: send all again, look the run up
        return Sent(creating=True)


def _has_ended(records: Path) -> bool:
    """Is the last record the end of the run? (A crash leaves none.)"""
    with records.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        lines = file.read().splitlines()
    return bool(lines) and lines[-1].startswith(b'{"op":"end"')


def _first_time(records: Path) -> int:
    for record, _ in _read(records, 0):
        return record.t
    return 0


def is_held(folder: Path) -> bool:
    """Whether a process has the spool in a folder open, and may live."""
    return holder(_lease(folder)) is not None


def _is_written(folder: Path) -> str:
    owner = holder(_lease(folder))
    return (
        f"The tracking records in {folder} are being written by another process"
        f"{f' ({owner.words})' if owner else ''}. Wait for that run to end, or stop it."
    )


def _lease(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lease")


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _read(path: Path, offset: int) -> Iterator[tuple[SpoolRecord, int]]:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield from_json(json.loads(line)), offset
