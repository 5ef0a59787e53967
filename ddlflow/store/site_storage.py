"""The site's storage: a folder that every worker sees, and that may be full or another's."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.spec.site import Site
from ddlflow.store.files import temporary_for

FULL_BYTES = 64 << 20  # a disk with less is one on which a write may have failed


def storage_of(site: Site) -> Path:
    """The site's storage as an absolute path.

    Raises:
        SpecError: it is a URL.
    """
    storage = site.storage
    if "://" in storage:
        raise SpecError(
            f"storage is {storage}; expected a folder that every worker sees. "
            "Shards are memory-mapped, so mount the bucket or choose a shared folder."
        )
    return Path(storage).expanduser().absolute()


@contextlib.contextmanager
def storage_errors(storage: Path, *, of_work: bool = False) -> Iterator[None]:
    """Says what to do about a storage that cannot be written.

    Args:
        storage: the folder.
        of_work: what is done inside may touch other places as well (a source, a server, a user's
            code): only what is plainly of the storage is said to be.

    Raises:
        SpecError: it is not this user's to write.
        DdlflowError: it is full, or fails.
    """
    try:
        yield
    except OSError as error:
        if of_work and not _is_of(error, storage):
            raise
        place = error.filename or storage
        raise (SpecError if isinstance(error, PermissionError) else DdlflowError)(
            f"storage {storage}: {place} cannot be written: {error.strerror}. Free space "
            "or permissions there, or set storage in the site file."
        ) from error


def _is_of(error: OSError, storage: Path) -> bool:
    """Whether an error names a file of the storage, or names none and the storage is full."""
    if isinstance(error.filename, (str, bytes)):
        return Path(os.fsdecode(error.filename)).absolute().is_relative_to(storage)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return False
    with contextlib.suppress(OSError):
        return shutil.disk_usage(storage).free < FULL_BYTES
    return True


def remove_empty(folder: Path) -> None:
    """Removes a folder tree that holds no file."""
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir():
            with contextlib.suppress(OSError):
                inner.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by a temporary name and rename."""
    temporary = temporary_for(path)
    try:
        temporary.write_text(json.dumps(value, indent=1))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
