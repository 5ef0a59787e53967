"""A training's state in one file: written whole or not at all, trusted only by its hash.

The file is a line that names the format and the SHA-256 of what follows, and then what
``torch.save`` wrote; it is read with ``weights_only=True``, so it can carry tensors and plain
values and never code. The last two are kept: a damaged one falls back to the one before.
"""

import contextlib
import hashlib
import io
import logging
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddlflow.errors import CheckpointError

MAGIC = b"ddlflow checkpoint 1 sha256 "
KEPT = 2
Say = Callable[[str], object]
log = logging.getLogger(__name__)


def write(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes ``step-<step>.ckpt`` by a temporary name, fsync and rename; keeps the last two.

    Raises:
        CheckpointError: the file could not be written; what stood before stands still.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    path = folder / f"step-{step:012d}.ckpt"
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        known = files(folder)
        # Those of later steps are of no use: the training went back behind them.
        kept = known[: known.index(path) + 1][-KEPT:]
        for old in [*(file for file in known if file not in kept), *folder.glob("step-*.tmp")]:
            old.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"checkpoint {path} cannot be written: {error.strerror}.") from error
    return path


def files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after its hash is seen to be right.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
    """
    try:
        head, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
    if not head.startswith(MAGIC):
        raise CheckpointError(f"{path} is no checkpoint of this ddlflow.")
    if hashlib.sha256(payload).hexdigest().encode() != head[len(MAGIC) :]:
        raise CheckpointError(f"checkpoint {path} is damaged: its bytes do not match its hash.")
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds something else than tensors and plain values: it is not read."
        ) from error
    return dict(state)


def latest(folder: Path, say: Say = log.warning) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over."""
    for path in reversed(files(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            say(f"{error} The one before is used, if there is one.")
    return None


class Writer:
    """Writes checkpoints in a thread of its own; a newer one replaces one that still waits.

    Args:
        folder: of the training's checkpoints.
        say: gets a sentence when one cannot be written, and when one can again.
    """

    def __init__(self, folder: Path, say: Say = log.error) -> None:
        self._folder = folder
        self._say = say
        self._failed = False
        self._waiting: tuple[int, dict[str, Any]] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, step: int, state: dict[str, Any]) -> None:
        """Hands over a state whose tensors nobody changes any more; returns at once."""
        with self._changed:
            self._waiting = (step, state)
            self._changed.notify_all()

    def close(self) -> None:
        """Returns when the newest state is on the disk (or could not be put there: see the log)."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ended)
                if self._waiting is None:
                    return
                (step, state), self._waiting = self._waiting, None
            try:
                write(self._folder, step, state)
            except CheckpointError as error:
                # A healthy training outlives a full disk; the next checkpoint tries again.
                if not self._failed:
                    self._say(f"{error} The training goes on without it, and tries again.")
                self._failed = True
                continue
            if self._failed:
                self._say("Checkpoints can be written again.")
            self._failed = False
