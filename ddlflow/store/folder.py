"""A store that is a folder: every worker sees it, and reads and maps its files where they lie."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ddlflow.store.claims import Claims, FolderClaims
from ddlflow.store.files import is_temporary, remove_leftovers, temporary_for


@dataclass(frozen=True, slots=True)
class FolderStore:
    """See `ddlflow.store.store.Store`.

    Attributes:
        root: its absolute path; the folder may not be there yet.
    """

    root: Path

    @property
    def location(self) -> str:
        return str(self.root)

    def at(self, prefix: str) -> "FolderStore":
        return FolderStore(self.root / prefix)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        with self.writing(key) as temporary, temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def write_if_absent(self, key: str, data: bytes) -> bool:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not data:
                path.touch(exist_ok=False)
                return True
            with self._temporary(path) as temporary:
                temporary.write_bytes(data)
                path.hardlink_to(temporary)  # made whole or not at all, and never over another
        except FileExistsError:
            return False
        return True

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary(path) as temporary:
            yield temporary
            temporary.replace(path)

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[Path]:
        temporary = temporary_for(path)
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink()

    @contextmanager
    def writing_folder(self, prefix: str, last: str) -> Iterator[Path]:
        folder = self.root / prefix
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        making = temporary_for(folder)
        making.mkdir()
        yield making  # what an error leaves is removed by the next that writes here
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)

    def list(self, prefix: str = "") -> list[str]:
        found = [
            Path(folder, name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(self.root / prefix)
            for name in names
            if not is_temporary(name)
        ]
        return sorted(found)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return {key: self.size(key) for key in self.list(prefix)}

    def parts(self) -> "Sequence[str]":
        with suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        return []

    def make(self) -> bool:
        is_new = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        return is_new

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def size(self, key: str) -> int:
        return (self.root / key).stat().st_size

    def remove(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def remove_all(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root)

    def local(self, key: str, sha256: str | None = None) -> Path:
        return self.root / key

    def local_folder(self, prefix: str = "") -> Path:
        return self.root / prefix

    def ahead(self, files: Sequence[tuple[str, str]]) -> None:
        """Nothing: they are here."""

    def claims(self, kind: str, *, shared: bool = False) -> Claims:
        beside = self.root.with_name(f".{self.root.name}.{kind}")
        beside.parent.mkdir(parents=True, exist_ok=True)
        return FolderClaims(beside, shared=shared)
