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
from ddlflow.store.store import Store, is_url, open_store

FULL_BYTES = 64 << 20  # a disk with less is one on which a write may have failed


def storage_of(site: Site) -> Path:
    """The site's storage as an absolute path.

    Of an object store: the folder of this machine that keeps what is this machine's alone, such as
    metrics that MLflow did not take yet.

    Raises:
        SpecError: a URL that names no object store.
    """
    storage = site.storage
    if is_url(storage):
        store = open_store(storage)
        return Path(".ddlflow", *store.location.partition("://")[2].split("/")).absolute()
    return Path(storage).expanduser().absolute()


def store_of_site(site: Site) -> Store:
    """The site's storage.

    Raises:
        SpecError: a URL that names no object store.
    """
    return open_store(site.storage if is_url(site.storage) else storage_of(site))


@contextlib.contextmanager
def storage_errors(storage: Path | str, *, of_work: bool = False) -> Iterator[None]:
    """Says what to do about a storage that cannot be written.

    Args:
        storage: the folder, or the URL of an object store.
        of_work: what is done inside may touch other places as well (a source, a server, a user's
            code): only what is plainly of the storage is said to be.

    Raises:
        SpecError: it is not this user's to write, or there is no such bucket.
        DdlflowError: it is full, or fails.
    """
    try:
        yield
    except OSError as error:
        if of_work and not _is_of(error, storage):
            raise
        place = error.filename or storage
        is_input = isinstance(error, PermissionError) or error.errno == errno.ENODEV
        raise (SpecError if is_input else DdlflowError)(
            f"storage {storage}: {place} cannot be {_used(storage)}: {error.strerror}. "
            f"{_advice(storage)}"
        ) from error


def _used(storage: Path | str) -> str:
    return "used" if is_url(str(storage)) else "written"


def _advice(storage: Path | str) -> str:
    if is_url(str(storage)):
        return (
            "Look at the bucket's name and region, at the credentials and at their rights to list, "
            "read, write and delete there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, "
            "AWS_ENDPOINT_URL), or set storage in the site file."
        )
    return "Free space or permissions there, or set storage in the site file."


def _is_of(error: OSError, storage: Path | str) -> bool:
    """Whether an error names a file of the storage, or names none and the storage is full."""
    if is_url(str(storage)):
        named = error.filename if isinstance(error.filename, str) else ""
        return named.startswith(f"{storage}/") or (bool(named) and str(storage).startswith(named))
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
