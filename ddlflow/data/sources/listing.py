"""What lies at a location: one file, a glob, a folder, or any of them behind an fsspec URL."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from ddlflow.data.sources.files import EXTENSIONS, File, filesystem_of, format_of, resolve
from ddlflow.errors import DataError
from ddlflow.store.object_client import telling

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
class _Listed:
    """A file as a file system lists it.

    Attributes:
        path: as the file system knows it.
        size: bytes, where it is stated.
        stamp: what changes when the file does, as text; empty where nothing is stated.
        broken: what a link names that is not there.
    """

    path: str
    size: int | None
    stamp: str = ""
    broken: str | None = None


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
            filesystem, path = filesystem_of(address)
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
    alone = not is_glob and len(found) == 1 and found[0].path == path.rstrip("/")
    if not alone:
        found = [one for one in found if not _is_hidden(_relative(one.path, root))]
    if not found:
        what = "no file matches" if is_glob else "the folder holds no file"
        raise DataError(f"{address}: {what}. Correct data.source.")
    if not is_glob or len({format_of(one.path) for one in found} - {None}) > 1:
        tables = [one for one in found if not one.path.lower().endswith(_PERHAPS)]
        found = tables if any(format_of(one.path) for one in tables) else found
    chosen, kind = _of_one_format(address, wanted, found, alone)
    return kind, sorted((_file(address, one, root) for one in chosen), key=lambda file: file.name)


def _find(filesystem: Any, path: str, is_glob: bool) -> tuple[str, list[_Listed]]:
    """The folder that names are relative to, and each file found."""
    clean = path.rstrip("/")
    is_local = isinstance(filesystem, LocalFileSystem)
    if is_glob:
        root = _fixed_part(path)
        if is_local:
            depth = None if "**" in path else path.count("/") - root.count("/")
            matches = re.compile(glob_translate(path)).match
            walked: Iterable[_Listed] = ()
            if Path(root or "/").is_dir():
                walked = _walk(root or "/", depth)
            return root, [one for one in walked if matches(one.path)]
        found = filesystem.glob(path, detail=True)
        files = [(p, info) for p, info in found.items() if info["type"] == "file"]
        return root, [_listed(filesystem, p, info) for p, info in files]
    info = filesystem.info(path)
    if is_local and Path(path).is_dir():
        return clean, list(_walk(clean, None))
    if info["type"] == "directory":
        found = filesystem.find(path, detail=True)
        return clean, [_listed(filesystem, p, info) for p, info in found.items()]
    return clean.rpartition("/")[0], [_listed(filesystem, clean, info)]


def _fixed_part(glob: str) -> str:
    """The folders of a glob before the first sign."""
    fixed: list[str] = []
    for part in glob.split("/"):
        if any(sign in part for sign in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def _listed(filesystem: Any, path: str, info: Mapping[str, Any]) -> _Listed:
    """A file by what fsspec says of it; a web server's list of a folder has names alone."""
    if info.get("size") is None:
        info = filesystem.info(path)
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
    if "ino" in info:  # a local file
        stamp = _local_stamp(info["mtime"], info["created"])
    return _Listed(path, info.get("size"), stamp)


def _local_stamp(modified: float, changed: float) -> str:
    """tar and rsync give an old time of modification to new bytes, but never one of change."""
    return f"{modified} {changed}"


def _walk(
    folder: str, depth: int | None, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[_Listed]:
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
            yield _Listed(entry.path, None, broken=str(Path(entry.path).readlink()))
            continue
        if stat.S_ISREG(found.st_mode):
            stamp = _local_stamp(found.st_mtime, found.st_ctime)
            yield _Listed(entry.path, found.st_size, stamp)
        is_circle = (found.st_dev, found.st_ino) in above
        if stat.S_ISDIR(found.st_mode) and depth != 1 and not is_circle:
            yield from _walk(entry.path, depth and depth - 1, above)


def _of_one_format(
    address: str, wanted: str, found: list[_Listed], alone: bool
) -> tuple[list[_Listed], str]:
    """Keeps the files of the wanted format, or of the only format there is."""
    kinds = {one.path: format_of(one.path) for one in found}
    if wanted != "auto":
        same = [one for one in found if kinds[one.path] == wanted]
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
    return [one for one in found if alone or kinds[one.path]], known[0]


def _file(address: str, found: _Listed, root: str) -> File:
    name = _relative(found.path, root)
    if found.broken is not None:
        raise DataError(
            f"{found.path} is a link to {found.broken}, which is not there. Remove or mend it."
        )
    if found.size is None:
        raise DataError(f"{address}: the server does not state the file's size. Download it first.")
    keys = []
    for part in name.split("/")[:-1]:
        key, sign, value = part.partition("=")
        if sign and key:
            keys.append((key, None if value == _NULL_PARTITION else unquote(value)))
    return File(name, found.path, int(found.size), found.stamp, tuple(keys))


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if path.startswith(root) else path.lstrip("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in name.split("/"))
