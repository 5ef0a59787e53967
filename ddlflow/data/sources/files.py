"""What lies at a location: one file, a glob, a folder, or any of them behind an fsspec URL."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

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
# Often lies beside tables and is none: read where there is no other table.
_PERHAPS = (".json", ".json.gz")
# What the common file systems call the mark that changes when a file does, best first.
_STAMPS = (
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "Content-MD5",
    "Digest",
    "mtime",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


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


def names_format(location: str, data_root: Path) -> bool:
    """Whether the files at a location have a name that tells their format."""
    try:
        list_files(resolve(location, data_root), "auto")
    except DataError:
        return False
    return True


def list_files(address: str, wanted: str) -> tuple[str, list[File]]:
    """The format and the files at an address, sorted by name.

    Args:
        address: an absolute path or a URL: of a file, a glob or a folder.
        wanted: a format, or "auto" for the one that the extensions stand for.

    Raises:
        DataError: nothing there, no known extension, several formats at once, or no access.
    """
    try:
        with telling(address, client_alone=True):
            filesystem, path = _filesystem(address)
            is_glob = any(sign in path for sign in "*?[") and not filesystem.exists(path)
            root, found = _find(filesystem, path, is_glob)
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec says so too of a web server that does not answer
        if cause is not None and getattr(cause, "status", None) != HTTPStatus.NOT_FOUND:
            raise DataError(
                f"{address} cannot be read: {type(cause).__name__}: {cause}."
            ) from error
        raise DataError(
            f"{address}: there is no such file or folder. Correct data.source."
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address} cannot be listed: {error}") from error
    alone = not is_glob and len(found) == 1 and found[0][0] == path.rstrip("/")
    if not alone:
        found = [(p, info) for p, info in found if not _is_hidden(_relative(p, root))]
    if not found:
        what = "no file matches" if is_glob else "the folder holds no file"
        raise DataError(f"{address}: {what}. Correct data.source.")
    if not is_glob or len({format_of(p) for p, _ in found} - {None}) > 1:
        tables = [(p, info) for p, info in found if not p.lower().endswith(_PERHAPS)]
        found = tables if any(format_of(p) for p, _ in tables) else found
    chosen, kind = _of_one_format(address, wanted, found, alone)
    return kind, sorted(
        (_file(address, p, info, root) for p, info in chosen), key=lambda file: file.name
    )


def _filesystem(address: str) -> tuple[Any, str]:
    """What reads an address, and its path there."""
    if urlsplit(address).scheme in SCHEMES:
        register_filesystems()
    found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return found


def _find(filesystem: Any, path: str, is_glob: bool) -> tuple[str, list[tuple[str, Any]]]:
    """The folder that names are relative to, and each (path, info) found."""
    if is_glob:
        fixed: list[str] = []
        for part in path.split("/"):
            if any(sign in part for sign in "*?["):
                break
            fixed.append(part)
        root = "/".join(fixed)
        if isinstance(filesystem, LocalFileSystem):
            depth = None if "**" in path else path.count("/") - root.count("/")
            matches = re.compile(glob_translate(path)).match
            walked = _walk(root or "/", depth) if Path(root or "/").is_dir() else iter(())
            return root, [(p, info) for p, info in walked if matches(p)]
        found = filesystem.glob(path, detail=True)
        files = [(p, info) for p, info in found.items() if info["type"] == "file"]
        return root, [_sized(filesystem, p, info) for p, info in files]
    info = filesystem.info(path)
    if isinstance(filesystem, LocalFileSystem) and Path(path).is_dir():
        return path.rstrip("/"), list(_walk(path.rstrip("/"), None))
    if info["type"] == "directory":
        found = filesystem.find(path, detail=True)
        return path.rstrip("/"), [_sized(filesystem, p, info) for p, info in found.items()]
    clean = path.rstrip("/")
    return clean.rpartition("/")[0], [(clean, info)]


def _sized(filesystem: Any, path: str, info: Any) -> tuple[str, Any]:
    """A web server's list of a folder has names alone."""
    return path, info if info.get("size") is not None else filesystem.info(path)


def _walk(
    folder: str, depth: int | None, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """The files of a folder and of those in it, to a depth; links are followed, but not in circles.

    (The walk of fsspec passes over links.) The size of a link to nothing is None.
    """
    own = Path(folder).stat()
    above |= {(own.st_dev, own.st_ino)}
    for entry in os.scandir(folder):
        try:
            found = entry.stat()
        except OSError:
            if not entry.is_symlink():
                raise
            yield entry.path, {"link": str(Path(entry.path).readlink())}
            continue
        if stat.S_ISREG(found.st_mode):
            yield entry.path, {"size": found.st_size, "mtime": found.st_mtime}
        is_circle = (found.st_dev, found.st_ino) in above
        if stat.S_ISDIR(found.st_mode) and depth != 1 and not is_circle:
            yield from _walk(entry.path, depth and depth - 1, above)


def _of_one_format(
    address: str, wanted: str, found: list[tuple[str, Any]], alone: bool
) -> tuple[list[tuple[str, Any]], str]:
    """Keeps the files of the wanted format, or of the only format there is."""
    kinds = {path: format_of(path) for path, _ in found}
    if wanted != "auto":
        same = [(path, info) for path, info in found if kinds[path] == wanted]
        return (same or found, wanted)
    known = sorted({kind for kind in kinds.values() if kind})
    known_text = ", ".join(EXTENSIONS)
    if not known:
        raise DataError(
            f"{address}: no file name ends in a known extension ({known_text}). "
            "Set data.format, rename the file, or convert it."
        )
    if len(known) > 1:
        raise DataError(
            f"{address} holds files of several formats ({', '.join(known)}). "
            "Set data.format, or name the files by a glob."
        )
    return [(path, info) for path, info in found if alone or kinds[path]], known[0]


def _file(address: str, path: str, info: Any, root: str) -> File:
    name = _relative(path, root)
    size = info.get("size")
    if "link" in info:
        raise DataError(
            f"{path} is a link to {info['link']}, which is not there. Remove or mend it."
        )
    if size is None:
        raise DataError(f"{address}: the server does not state the file's size. Download it first.")
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
    if "ino" in info:  # a local file: tar and rsync give an old mtime to new bytes, never this one
        stamp = f"{stamp} {info['created']}"
    keys = []
    for part in name.split("/")[:-1]:
        key, sign, value = part.partition("=")
        if sign and key:
            keys.append((key, None if value == _NULL_PARTITION else unquote(value)))
    return File(name, path, int(size), stamp, tuple(keys))


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


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if path.startswith(root) else path.lstrip("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in name.split("/"))


def open_file(address: str, file: File) -> pa.NativeFile:
    """The bytes of a file, by position.

    Raises:
        DataError: the file is gone or may not be read.
    """
    try:
        if "://" not in address:
            return pa.OSFile(file.path, "rb")
        filesystem, _ = _filesystem(address)
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
