"""Where what a site keeps lies: one Protocol over a folder and over an object store.

A store is a tree of files by keys (``prepare/0123/manifest.json``), each of which is there whole
or not at all, and which every worker reaches by the store's location: a path, or a URL.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ddlflow.store.claims import Claims


class Store(Protocol):
    """A folder, or a part of a bucket.

    What fails raises an OSError whose ``filename`` says where and whose ``strerror`` says why, of a
    bucket too: FileNotFoundError where there is no such key, PermissionError where access is
    denied.
    """

    @property
    def location(self) -> str:
        """An absolute path, or a URL without secrets: `open_store` opens it on any worker."""

    def at(self, prefix: str) -> "Store":
        """The part whose keys begin with ``prefix/``."""

    def read(self, key: str) -> bytes:
        """The bytes of a file."""

    def write(self, key: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        """Writes a file whole, over one that is there.

        Args:
            key: of the file.
            data: its bytes.
            durable: it outlives a power cut as this returns; an object store's always do.
        """

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Writes a file that is not there; False, and nothing is changed, where it is.

        Of several writers at once, on any hosts, one alone is told True.
        """

    def writing(self, key: str) -> AbstractContextManager[Path]:
        """A path of this host to write to: the file, whole, as the block ends without an error."""

    def writing_folder(self, prefix: str, last: str) -> AbstractContextManager[Path]:
        """A folder of this host to fill: ``prefix`` has its files alone as the block ends.

        Args:
            prefix: of the keys.
            last: the file by whose presence a reader knows that all others are there.
        """

    def list(self, prefix: str = "") -> list[str]:
        """The keys of all files below a prefix, relative to the store, sorted."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """As `list`, with the bytes of each file."""

    def parts(self) -> Sequence[str]:
        """The names of the parts right below that hold files (`at`), sorted; hidden ones too."""

    def make(self) -> bool:
        """Makes the store's own folder, where there is such a thing; whether nothing was there."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    def size(self, key: str) -> int:
        """The bytes of a file."""

    def remove(self, key: str) -> None:
        """Removes a file, if it is there."""

    def remove_all(self) -> None:
        """Removes every file of the store."""

    def local(self, key: str, sha256: str | None = None) -> Path:
        """A file as a path of this host, to be read or mapped: itself, or a copy in the cache.

        Args:
            key: of the file.
            sha256: of its bytes, which a copy then has; without it a copy is of the file as it is
                now.

        Raises:
            DataError: a copy would have another SHA-256.
        """

    def local_folder(self, prefix: str = "") -> Path:
        """All files below a prefix as a folder of this host, which is not written to."""

    def ahead(self, files: Sequence[tuple[str, str]]) -> None:
        """Begins to bring files (key, SHA-256) here, in this order; returns at once."""

    def claims(self, kind: str, *, shared: bool = False) -> Claims:
        """Who holds the whole of this store, see `ddlflow.store.claims`.

        It stands beside the store, as ``.NAME.KIND``: also before there is a file in it.

        Args:
            kind: what it is held for, as "lease".
            shared: several may hold it at a time.
        """


Place = Store | str | Path  # a store, or its location: what `store_of` opens


def open_store(location: str | Path) -> Store:
    """The store at a location: an absolute path, or a URL that `is_url` knows.

    Raises:
        SpecError: a URL of no known kind.
    """
    if isinstance(location, str) and is_url(location):
        from ddlflow.store.objects import ObjectStore  # which needs the package of the extra

        return ObjectStore.of(location)
    from ddlflow.store.folder import FolderStore

    return FolderStore(Path(location).absolute())


def is_url(location: str) -> bool:
    """Whether a location is an object store's, and no folder's."""
    return "://" in location


def store_of(place: Place) -> Store:
    """A store as it is, or the one at a location."""
    return open_store(place) if isinstance(place, (str, Path)) else place
