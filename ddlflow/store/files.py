"""Whole files or none: written under a temporary name, then renamed."""

import errno
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddlflow.errors import DdlflowError, InputError
from ddlflow.store.owner import owner_of, state_of, this_owner

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_TEMPORARY = re.compile(r"\..+?\.(?P<owner>\d+-.+)\.[0-9a-f]{32}\.tmp")


def temporary_for(path: Path) -> Path:
    """A name beside ``path`` that no other writer has, on this host or another.

    A worker that was taken for dead may write the same file as the one that has its task now. Of
    two containers both may be process 7, so the name has the whole owner, and a number of its own.
    """
    return path.with_name(f".{path.name}.{this_owner().name}.{uuid.uuid4().hex}.tmp")


def is_temporary(name: str) -> bool:
    """Whether `temporary_for` made a file's name."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that are no more left half written; those that may live keep theirs.

    What is written to is touched, so a writer elsewhere is known by that.
    """
    for path in folder.glob(".*.tmp"):
        named = _TEMPORARY.fullmatch(path.name)
        owner = owner_of(named["owner"]) if named else None
        with suppress(OSError):  # another one removes it, or it has its name now
            if owner is not None and state_of(owner, path) == "lost":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
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
    temporary = temporary_for(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()
