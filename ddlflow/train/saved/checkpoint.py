"""A training's state in one file: written whole or not at all, trusted only by its hash.

The file is a line that names the format and the SHA-256 of what follows, and then what
``torch.save`` wrote; it is read with ``weights_only=True``, so it can carry tensors and plain
values and never code. The last two are kept: a damaged one falls back to the one before.

A file's name begins with the number of the attempt that wrote it (see `fence`), so files sort by
attempt and then by step. An attempt removes only what sorts before its own newest file: one that
was cut off and goes on for a while never removes what a later attempt has written.
"""

import hashlib
import io
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch

from ddlflow.errors import CheckpointError
from ddlflow.store.files import remove_leftovers
from ddlflow.store.folder import FolderStore
from ddlflow.store.store import Place, Store, store_of

MAGIC = b"ddlflow checkpoint 1 sha256 "
HEAD_BYTES = len(MAGIC) + 64 + 1
SUFFIX = ".ckpt"
KEPT = 2
Say = Callable[[str], object]
Plain = Mapping[str, Any]  # tensors and plain values, by names that the writer knows
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and is whole.

    Attributes:
        name: of the file.
        state: what it holds.
        sha256: of its bytes.
    """

    name: str
    state: Plain
    sha256: str


def file_name(attempt: int, step: int) -> str:
    """The name of the checkpoint that an attempt wrote after a step."""
    return f"attempt-{attempt:06d}-step-{step:012d}{SUFFIX}"


def attempt_of(name: str) -> int:
    """The attempt that wrote a file."""
    return int(name.split("-")[1])


def step_of(name: str) -> int:
    """The step after which a file was written."""
    return int(name.removesuffix(SUFFIX).rpartition("-")[2])


def files(place: Place) -> list[str]:
    """The names of the checkpoints of a training, oldest first."""
    return [name for name in store_of(place).list() if fnmatch(name, f"attempt-*-step-*{SUFFIX}")]


def write(place: Place, step: int, state: Plain, attempt: int = 0) -> str:
    """Writes a checkpoint whole; keeps the last two. Returns its name.

    Raises:
        CheckpointError: the file could not be written; what stood before stands still.
    """
    folder, name = store_of(place), file_name(attempt, step)
    buffer = io.BytesIO(bytes(HEAD_BYTES))
    buffer.seek(HEAD_BYTES)
    torch.save(dict(state), buffer)
    data = buffer.getbuffer()
    sha256 = hashlib.sha256(data[HEAD_BYTES:]).hexdigest()
    data[:HEAD_BYTES] = MAGIC + sha256.encode() + b"\n"
    try:
        folder.write(name, data, durable=True)
        _remove_older(folder, name)
    except OSError as error:
        where = f"{folder.location}/{name}"
        raise CheckpointError(f"checkpoint {where} cannot be written: {error.strerror}.") from error
    return name


def _remove_older(folder: Store, name: str) -> None:
    """Keeps of what sorts up to ``name`` the last two; what lost attempts left half goes too."""
    known = files(folder)
    older = known[: known.index(name) + 1] if name in known else []
    for old in older[:-KEPT]:
        folder.remove(old)
    if isinstance(folder, FolderStore):
        remove_leftovers(folder.root)


def read(place: Place, name: str) -> Checkpoint:
    """Reads a checkpoint after its hash is seen to be right.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
    """
    folder = store_of(place)
    path = f"{folder.location}/{name}"
    try:
        head, _, payload = folder.read(name).partition(b"\n")
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
    return Checkpoint(name, state, sha256)


def latest(place: Place, say: Say = log.warning) -> Plain | None:
    """What the newest checkpoint holds, as `newest` finds it."""
    found = newest(place, say)
    return None if found is None else found.state


def newest(place: Place, say: Say = log.warning) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over."""
    for name in reversed(files(place)):
        try:
            return read(place, name)
        except CheckpointError as error:
            say(f"{error} The one before is used, if there is one.")
    return None
