"""A host's copies of what lies in an object store: bounded, least recently used go first.

One folder serves all processes of a host (and user). A copy is written under a temporary name, its
hash is checked, and then it is renamed: what is there is whole. One process fetches a file, the
others wait for it. A copy that is removed while a process has it mapped stays for that process.

    files/NAME      copies; NAME is of the SHA-256 or version, the time of change that of last use
    folders/NAME/   copies of whole folders, such as a model
    locks/ab        held while a file whose name begins so is fetched
    scratch/        what is being written to the store

The folder is that of DDLFLOW_CACHE, else one in the user's cache folder; its bound is
DDLFLOW_CACHE_GB, else half of what the disk has free as it begins to fill.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ddlflow.errors import DataError, DdlflowError, SpecError
from ddlflow.store.files import is_temporary, remove_leftovers, temporary_for

FOLDER, SIZE_GB = "DDLFLOW_CACHE", "DDLFLOW_CACHE_GB"
AHEAD = 2  # files that are fetched at once before they are asked for
Parts = Callable[[], Iterable[bytes]]


@lru_cache(maxsize=1)
def _cache_of(folder: Path, bytes_: int, pid: int) -> "Cache":
    return Cache(folder, bytes_)


def cache_here() -> "Cache":
    """This host's cache.

    Raises:
        SpecError: DDLFLOW_CACHE_GB is no number.
        DdlflowError: the folder cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(os.environ.get(FOLDER) or Path(base) / "ddlflow").absolute()
    return _cache_of(folder, _bound(os.environ.get(SIZE_GB)), os.getpid())


def _bound(text: str | None) -> int:
    try:
        return int(float(text or 0) * 1e9)
    except ValueError:
        raise SpecError(f"{SIZE_GB} is {text}; expected a number of gigabytes, as 200.") from None


class Cache:
    """See the module.

    Args:
        folder: on a disk of this host.
        bound: bytes that it may hold; 0: half of what is free, or its own already.
    """

    def __init__(self, folder: Path, bound: int = 0) -> None:
        self._root = folder
        try:
            for name in ("files", "folders", "locks", "scratch"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DdlflowError(
                f"The cache of the object store, {folder}, cannot be written: {error.strerror}. "
                f"Name a folder of this host in {FOLDER}."
            ) from error
        own = sum(size for _, size, _ in self._kept())
        self.bound = bound or (shutil.disk_usage(folder).free + own) // 2
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[Path]] = {}
        self._mutex = threading.Lock()

    def scratch(self) -> Path:
        """A folder for files that are on their way to the store."""
        return self._root / "scratch"

    def file(self, tag: str, parts: Parts, *, name: str, sha256: str | None = None) -> Path:
        """A file's copy, fetched if it is not here.

        Args:
            tag: what tells the file's bytes from all others, such as their SHA-256.
            parts: gives the bytes.
            name: of the file, for people.
            sha256: of the bytes; looked at as they come.

        Raises:
            DataError: they have another SHA-256.
            DdlflowError: the disk is full.
            OSError: as ``parts``.
        """
        path = self._root / "files" / _name(tag)
        while not self._use(path):
            with self._lock(path.name):
                if not path.exists():
                    self._fetch(path, parts, name, sha256)
        return path

    def folder(self, tag: str, names: Iterable[str], read: Callable[[str], bytes]) -> Path:
        """A folder's copy: small files, fetched if it is not here.

        Args:
            tag: what tells this version of the folder from all others.
            names: of its files.
            read: gives the bytes of one.
        """
        path = self._root / "folders" / _name(tag)
        while not self._use(path):
            with self._lock(path.name), contextlib.ExitStack() as stack:
                if path.exists():
                    continue
                making = temporary_for(path)
                stack.callback(shutil.rmtree, making, ignore_errors=True)
                for name in names:
                    (making / name).parent.mkdir(parents=True, exist_ok=True)
                    (making / name).write_bytes(read(name))
                making.rename(path)
        return path

    def ahead(self, sha256: str, parts: Parts, *, name: str) -> None:
        """Begins to fetch a file; whoever asks for it later finds it, or waits for it.

        An error comes again to who asks.
        """
        if (self._root / "files" / _name(sha256)).exists():
            return
        with self._mutex:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AHEAD, "ddlflow-cache")
            if sha256 in self._coming and not self._coming[sha256].done():
                return
            self._coming = {key: one for key, one in self._coming.items() if not one.done()}
            self._coming[sha256] = self._pool.submit(
                self.file, sha256, parts, name=name, sha256=sha256
            )

    def forget(self, path: Path) -> None:
        """Removes a copy that is not what it should be."""
        path.unlink(missing_ok=True)

    def _use(self, path: Path) -> bool:
        """Notes that a copy is used now; False where there is none."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, path: Path, parts: Parts, name: str, sha256: str | None) -> None:
        temporary = temporary_for(path)
        seen, held = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                for part in parts():
                    self._make_room(held + len(part), temporary)
                    file.write(part)
                    held += len(part)
                    if sha256 is not None:
                        seen.update(part)
            if sha256 is not None and seen.hexdigest() != sha256:
                raise DataError(
                    f"{name} is damaged: its bytes have the SHA-256 {seen.hexdigest()[:16]}..., "
                    f"and those that were written had {sha256[:16]}.... Prepare the data again "
                    "with --fresh."
                )
            temporary.replace(path)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise DdlflowError(
                f"The cache of the object store, {self._root}, has no room for {name}: "
                f"{error.strerror}. Free space there, or name another folder in {FOLDER}."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int, own: Path) -> None:
        """Removes what was used least recently until a file of so many bytes fits."""
        kept = [entry for entry in self._kept() if entry[2] != own]
        total = size + sum(each for _, each, _ in kept)
        if total <= self.bound:
            return
        remove_leftovers(self._root / "files")
        for _, each, path in sorted(kept):
            if total <= self.bound:
                return
            if is_temporary(path.name):  # of a process that fetches just now
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )
            total -= each

    def _kept(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each copy."""
        for kind in ("files", "folders"):
            for entry in os.scandir(self._root / kind):
                with contextlib.suppress(FileNotFoundError):  # removed in this moment
                    found = entry.stat()
                    size = _size(Path(entry.path)) if entry.is_dir() else found.st_size
                    yield found.st_mtime, size, Path(entry.path)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process, and one thread of it, at a time fetches what has this name."""
        with (self._root / "locks" / name[:3]).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _name(tag: str) -> str:
    return hashlib.sha256(tag.encode()).hexdigest()
