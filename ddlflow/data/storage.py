"""Whole files or none: written under a temporary name, then renamed."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddlflow.errors import DdlflowError, InputError

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of writing ``path`` into one clear sentence.

    Raises:
        InputError: the storage may not be written at all (rights, read-only).
        DdlflowError: the disk is full, or failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _REFUSED:
            raise InputError(
                f"{path} cannot be written: {reason}. Name a storage folder that every worker may "
                "write to."
            ) from error
        remedy = (
            "Make room there and run the same command again: it goes on from what is finished."
            if error.errno in _FULL
            else "Run the same command again: it goes on from what is finished."
        )
        raise DdlflowError(f"{path} could not be written: {reason}. {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renamed to it at the end, removed on failure."""
    # The process id keeps two workers apart that were given the same task (a retry that overlaps).
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def save_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON, whole or not at all."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: Path) -> Any:
    """The value in ``path``, or None where there is no whole JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
