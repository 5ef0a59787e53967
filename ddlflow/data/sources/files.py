"""The files of a source: what is known of one, and how its bytes are read."""

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa

from ddlflow.errors import DataError
from ddlflow.store.object_client import SCHEMES, register_filesystems, telling

EXTENSIONS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".json": "jsonl",
    ".json.gz": "jsonl",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file of a source.

    Attributes:
        name: relative to the source's root, with ``/``.
        path: as the file system knows it.
        size: bytes.
        stamp: modification time or etag, as text; empty where the file system has none.
        keys: the hive partition columns of its folders (``year=2024``), as text or None.
        units: rows of each row group (Parquet) or record batch (Arrow); empty for text.
    """

    name: str
    path: str
    size: int
    stamp: str
    keys: tuple[tuple[str, str | None], ...] = ()
    units: tuple[int, ...] = ()


def resolve(location: str, data_root: Path) -> str:
    """The location as an absolute path or URL: a relative path lies under ``data_root``."""
    if "://" in location:
        return location
    return str(data_root.absolute() / Path(location).expanduser())


def format_of(name: str) -> str | None:
    """The format that a file name's extension stands for, or None."""
    lower = (urlsplit(name).path if "://" in name else name).lower()  # a URL may have a query
    return next((kind for end, kind in EXTENSIONS.items() if lower.endswith(end)), None)


def stamped(address: str, file: File) -> File:
    """The file with a stamp: where the file system has none, the hash of its bytes.

    Raises:
        DataError: the file is gone or may not be read.
    """
    if file.stamp:
        return file
    digest = hashlib.sha256()
    with open_file(address, file) as handle:
        while data := handle.read(8 << 20):
            digest.update(data)
    return replace(file, stamp=f"sha256 {digest.hexdigest()}")


def filesystem_of(address: str) -> tuple[Any, str]:
    """What reads an address, and its path there."""
    if urlsplit(address).scheme in SCHEMES:
        register_filesystems()
    found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return found


def open_file(address: str, file: File) -> pa.NativeFile:
    """The bytes of a file, by position.

    Raises:
        DataError: the file is gone or may not be read.
    """
    try:
        if "://" not in address:
            return pa.OSFile(file.path, "rb")
        filesystem, _ = filesystem_of(address)
        return pa.PythonFile(filesystem.open(file.path, "rb"), mode="r")
    except OSError as error:
        reason = "it is gone" if error.errno == errno.ENOENT else str(error)
        raise DataError(f"{file.path} cannot be read: {reason}.") from error


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what is said of an unreadable or damaged file into one sentence that names the file.

    Raises:
        DataError: a damaged file; or no connection, no right, no time, under its own name.
    """
    try:
        with telling(path, client_alone=True):
            yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        said = said.rstrip(".")
        # pyarrow says OSError of a damaged file too, but only the system's own has a number.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise DataError(f"{path} cannot be read: {type(error).__name__}: {said}.") from error
        if "lists to be of size" in said:  # Arrow writes such a file, and does not read it
            raise DataError(
                f"{path} cannot be read: a tensor of fixed shape is null in some row, which Arrow "
                "does not read from Parquet. Write the file without these rows, or as Arrow."
            ) from error
        raise DataError(
            f"{path} cannot be read: {said}. It is damaged, incomplete or of another "
            "format: write it again, or set data.format."
        ) from error
    except ValueError as error:
        if "range requests" not in str(error):  # of a web server, by fsspec
            raise
        raise DataError(
            f"{path} cannot be read in parts: its server gives files whole alone. "
            "Download it first."
        ) from error
