"""A training's state in one file: written whole or not at all, trusted only by its hash.

The file is a line that names the format and the SHA-256 of what follows, and then what
``torch.save`` wrote; it is read with ``weights_only=True``, so it can carry tensors and plain
values and never code. The last two are kept: a damaged one falls back to the one before.

A file's name begins with the number of the attempt that wrote it (see `fence`), so files sort by
attempt and then by step. An attempt removes only what sorts before its own newest file: one that
was cut off and goes on for a while never removes what a later attempt has written.
"""

import contextlib
import hashlib
import io
import logging
import os
import pickle
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddlflow.errors import CheckpointError

MAGIC = b"ddlflow checkpoint 1 sha256 "
KEPT = 2
Say = Callable[[str], object]
log = logging.getLogger(__name__)


def file_name(attempt: int, step: int) -> str:
    """The name of the checkpoint that an attempt wrote after a step."""
    return f"attempt-{attempt:06d}-step-{step:012d}.ckpt"


def attempt_of(path: Path) -> int:
    """The attempt that wrote a file."""
    return int(path.name.split("-")[1])


def step_of(path: Path) -> int:
    """The step after which a file was written."""
    return int(path.stem.rpartition("-")[2])


def files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("attempt-*-step-*.ckpt"))


def write(folder: Path, step: int, state: Mapping[str, Any], attempt: int = 0) -> Path:
    """Writes a checkpoint by a temporary name, fsync and rename; keeps the last two.

    Raises:
        CheckpointError: the file could not be written; what stood before stands still.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    path = folder / file_name(attempt, step)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _remove_older(folder, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"checkpoint {path} cannot be written: {error.strerror}.") from error
    return path


def _remove_older(folder: Path, path: Path) -> None:
    """Keeps of what sorts up to ``path`` the last two; half-written files of then go too."""
    known = files(folder)
    older = known[: known.index(path) + 1] if path in known else []
    halves = [file for file in folder.glob("attempt-*.tmp") if file.name < path.name]
    for old in [*older[:-KEPT], *halves]:
        old.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after its hash is seen to be right.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
    """
    return read_with_hash(path)[0]


def read_with_hash(path: Path) -> tuple[dict[str, Any], str]:
    """As `read`, with the SHA-256 of what was read."""
    try:
        head, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
    if not head.startswith(MAGIC):
        raise CheckpointError(f"{path} is no checkpoint of this ddlflow.")
    sha256 = hashlib.sha256(payload).hexdigest()
    if sha256.encode() != head[len(MAGIC) :]:
        raise CheckpointError(f"checkpoint {path} is damaged: its bytes do not match its hash.")
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds something else than tensors and plain values: it is not read."
        ) from error
    return dict(state), sha256


def latest(folder: Path, say: Say = log.warning) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over."""
    found = newest(folder, say)
    return found[1] if found else None


def newest(folder: Path, say: Say = log.warning) -> tuple[Path, dict[str, Any], str] | None:
    """As `latest`, with the file's path and its SHA-256."""
    for path in reversed(files(folder)):
        try:
            return (path, *read_with_hash(path))
        except CheckpointError as error:
            say(f"{error} The one before is used, if there is one.")
    return None
