"""Claims in a bucket: objects whose bytes are an entry's name, changed by conditional writes.

A lease is one object. It is let go of by writing nothing over the own entry: a removal cannot be
bound to that everywhere, and might remove another one's. Users have an object each.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from ddlflow.store.entries import Entry, entry_of

Version = dict[str, str | None]


class VersionedObjects(Protocol):
    """What claims need of a store of objects (`ddlflow.store.objects.ObjectStore`)."""

    @property
    def location(self) -> str: ...

    def at(self, prefix: str) -> "VersionedObjects":
        """The objects below a prefix."""
        ...

    def list(self) -> Sequence[str]:
        """Their keys."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def versioned(self, key: str) -> tuple[bytes, Version]:
        """The bytes of an object and what tells this version of it; raises as ``read``."""
        ...

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Writes an object where there is none; whether it did."""
        ...

    def swap(self, key: str, data: bytes, version: Version) -> Version | None:
        """Writes an object over this very version; None where there is another one."""
        ...

    def remove(self, key: str) -> None:
        """Removes an object, if it is there."""
        ...


class ObjectClaims:
    """What one owner holds; see `ddlflow.store.claims.Claims`.

    Args:
        store: of the bucket.
        key: of the object.
    """

    def __init__(self, store: VersionedObjects, key: str) -> None:
        self._store, self._key = store, key
        self._own: tuple[bytes, Version] | None = None  # what was last written here

    @property
    def place(self) -> str:
        return f"{self._store.location}/{self._key}"

    def entries(self) -> list[Entry]:
        try:
            found = entry_of(self._store.read(self._key).decode())
        except FileNotFoundError:
            return []
        return [] if found is None else [found]

    def take(self, mine: Entry) -> bool:
        data = mine.name.encode()
        if self._store.write_if_absent(self._key, data):
            return True
        try:
            found, version = self._store.versioned(self._key)
        except FileNotFoundError:
            return False
        # It may be ours, as in `_swap`.
        return found == data or (not found and self._swap(mine.name, version))

    def join(self, mine: Entry) -> None:
        raise NotImplementedError("one owner alone holds a lease")

    def replace(self, found: Entry, new: Entry) -> bool:
        return self._change(found, new.name)

    def remove(self, entry: Entry) -> None:
        self._change(entry, "")

    def _change(self, found: Entry, text: str) -> bool:
        expected = found.name.encode()
        if self._own is not None and self._own[0] == expected:
            return self._swap(text, self._own[1])
        try:
            data, version = self._store.versioned(self._key)
        except FileNotFoundError:
            return False
        return data == expected and self._swap(text, version)

    def _swap(self, text: str, version: Version) -> bool:
        data, self._own = text.encode(), None
        written = self._store.swap(self._key, data, version)
        if written is None:  # an answer that was lost is asked for again, and hears no
            with suppress(FileNotFoundError):
                return bool(data) and self._store.read(self._key) == data
            return False
        self._own = data, written
        return True


class UserObjects:
    """What several hold; see `ddlflow.store.claims.Claims`.

    Args:
        store: of the bucket.
        key: what their objects' keys begin with.
    """

    def __init__(self, store: VersionedObjects, key: str) -> None:
        self._store = store.at(key)
        self._known: dict[str, ObjectClaims] = {}

    @property
    def place(self) -> str:
        return self._store.location

    def entries(self) -> list[Entry]:
        each = [entry for token in self._store.list() for entry in self._of(token).entries()]
        return sorted(each, key=lambda entry: entry.beat)

    def take(self, mine: Entry) -> bool:
        raise NotImplementedError("what several hold is joined")

    def join(self, mine: Entry) -> None:
        self._of(mine.token).take(mine)

    def replace(self, found: Entry, new: Entry) -> bool:
        return found.token == new.token and self._of(found.token).replace(found, new)

    def remove(self, entry: Entry) -> None:
        # Nobody but its owner changes it, but one that takes the owner for dead.
        self._store.remove(entry.token)
        self._known.pop(entry.token, None)

    def _of(self, token: str) -> ObjectClaims:
        return self._known.setdefault(token, ObjectClaims(self._store, token))
