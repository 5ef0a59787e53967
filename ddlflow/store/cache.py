"""A host's copies of what lies in an object store: bounded, least recently used go first.

One folder serves all processes of a host (and user). A copy is written under a temporary name, its
hash is checked, and then it is renamed: what is there is whole. One process fetches a file, the
others wait for it. A copy that is removed while a process has it mapped stays for that process.

    copies/NAME/    a file or a few, by their own names; NAME is of their hash or version, and its
                    time of change is that of the last use
    locks/ab        held while a copy whose NAME begins so is fetched
    kept/NAME/      what a host keeps of a place of the store until it is put there
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
LOOK = 4  # processes that may fill up what is free between two looks at it
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
            for name in ("copies", "locks", "scratch"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DdlflowError(
                f"The cache of the object store, {folder}, cannot be written: {error.strerror}. "
                f"Name a folder of this host in {FOLDER}."
            ) from error
        own = sum(size for _, size, _ in self._kept())
        self.bound = bound or (shutil.disk_usage(folder).free + own) // 2
        self._unseen = 0  # bytes that may be written before what all processes hold is looked at
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[Path]] = {}
        self._mutex = threading.Lock()

    def scratch(self) -> Path:
        """A folder for files that are on their way to the store."""
        return self._root / "scratch"

    def kept(self, location: str) -> Path:
        """A folder for what a host keeps of a place of the store until it can be put there."""
        path = self._root / "kept" / _name(location)
        path.mkdir(parents=True, exist_ok=True)
        return path

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
        file = name.rpartition("/")[2]

        def fill(folder: Path) -> None:
            self._fetch(folder / file, parts, name, sha256)

        return self._copy(tag, name, fill) / file

    def folder(
        self, tag: str, names: Iterable[str], parts: Callable[[str], Iterable[bytes]]
    ) -> Path:
        """A folder's copy, fetched if it is not here.

        Args:
            tag: what tells this version of the folder from all others.
            names: of its files.
            parts: gives the bytes of one.
        """

        def fill(folder: Path) -> None:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self._fetch(folder / name, lambda name=name: parts(name), name, None)  # type: ignore[misc]

        return self._copy(tag, tag.partition(" ")[0], fill)

    def _copy(self, tag: str, what: str, fill: Callable[[Path], None]) -> Path:
        """The folder of a copy, made whole by its name if it is not here."""
        path = self._root / "copies" / _name(tag)
        while not self._use(path):
            with self._lock(path.name):
                if path.exists():
                    continue
                making = temporary_for(path)
                try:
                    making.mkdir()
                    fill(making)
                    making.rename(path)
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        raise
                    raise DdlflowError(
                        f"The cache of the object store, {self._root}, has no room for {what}: "
                        f"{error.strerror}. Free space there, or name another folder in {FOLDER}."
                    ) from error
                finally:
                    shutil.rmtree(making, ignore_errors=True)
        return path

    def ahead(self, sha256: str, parts: Parts, *, name: str) -> None:
        """Begins to fetch a file; whoever asks for it later finds it, or waits for it.

        An error comes again to who asks.
        """
        if (self._root / "copies" / _name(sha256)).exists():
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

    def _use(self, path: Path) -> bool:
        """Notes that a copy is used now; False where there is none."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, path: Path, parts: Parts, name: str, sha256: str | None) -> None:
        seen = hashlib.sha256()
        with path.open("wb") as file:
            for part in parts():
                self._make_room(len(part))
                file.write(part)
                if sha256 is not None:
                    seen.update(part)
        if sha256 is not None and seen.hexdigest() != sha256:
            raise DataError(
                f"{name} is damaged: its bytes have the SHA-256 {seen.hexdigest()[:16]}..., and "
                f"those that were written had {sha256[:16]}.... Prepare the data again with "
                "--fresh."
            )

    def _make_room(self, size: int) -> None:
        """Removes what was used least recently until so many bytes more fit."""
        with self._mutex:
            self._unseen -= size
            if self._unseen >= 0:
                return
            remove_leftovers(self._root / "copies")
            kept = sorted(self._kept())
            total = size + sum(each for _, each, _ in kept)
            for _, each, path in kept:
                if total <= self.bound:
                    break
                if not is_temporary(path.name):  # else a process fetches it just now
                    shutil.rmtree(path, ignore_errors=True)
                    total -= each
            self._unseen = max(0, self.bound - total) // LOOK

    def _kept(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each copy."""
        for entry in os.scandir(self._root / "copies"):
            with contextlib.suppress(FileNotFoundError):  # removed in this moment
                yield entry.stat().st_mtime, _size(entry.path), Path(entry.path)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process, and one thread of it, at a time fetches what has this name."""
        with (self._root / "locks" / name[:3]).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _size(folder: str) -> int:
    return sum(
        os.lstat(os.path.join(at, name)).st_size  # noqa: PTH118 # fast for many small ones
        for at, _, names in os.walk(folder)
        for name in names
    )


def _name(tag: str) -> str:
    return hashlib.sha256(tag.encode()).hexdigest()
