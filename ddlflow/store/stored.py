"""One file of a store as a value that travels to workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlflow.store import documents
from ddlflow.store.files import writing
from ddlflow.store.store import Store


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there whole, or not at all.

    Attributes:
        store: that it lies in.
        key: of it there.
    """

    store: Store
    key: str

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return f"{self.store.location}/{self.key}"

    def exists(self) -> bool:
        """Whether it is there."""
        return self.store.exists(self.key)

    def remove(self) -> None:
        """Removes it, if it is there."""
        self.store.remove(self.key)

    def here(self) -> Path:
        """It as a path of this host, to be read."""
        return self.store.local(self.key)

    @contextmanager
    def made(self) -> Iterator[Path]:
        """A path to write to: the file, as the block ends without an error.

        Raises:
            InputError: the storage may not be written at all.
            DdlflowError: it is full, or failed.
        """
        with writing(self.name), self.store.writing(self.key) as temporary:
            yield temporary

    def save(self, value: Any) -> None:
        """Writes it as JSON; raises as `made`."""
        documents.save(self.store, self.key, value)

    def load(self) -> Any:
        """The JSON value in it; None where there is no whole one."""
        return documents.load(self.store, self.key)
