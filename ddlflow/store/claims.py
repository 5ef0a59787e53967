"""Who holds what a key of a store stands for: entries that change whole, one at a time, or not.

A claim is held by one owner (a lease) or by several (users). Every change names the entry that it
expects, and the store does it or refuses: a folder by renames, an object store by conditional
writes. So two never hold one lease, whatever the hosts' clocks and caches say.
"""

import contextlib
import errno
import uuid
from pathlib import Path
from typing import Protocol

from ddlflow.store.entries import Entry, entries


class Claims(Protocol):
    """Who holds one thing. What fails raises an OSError."""

    @property
    def place(self) -> str:
        """Where they stand, for people."""

    def entries(self) -> list[Entry]:
        """Who holds it; the last that was heard of comes last."""

    def take(self, mine: Entry) -> bool:
        """Holds it alone, if nobody does; whether it did."""

    def join(self, mine: Entry) -> None:
        """Holds it beside others; only of what is claimed by several."""

    def replace(self, found: Entry, new: Entry) -> bool:
        """Puts an entry in the place of the very one that was found; whether it did.

        A beat of one's own, or the take-over from another.
        """

    def remove(self, entry: Entry) -> None:
        """Lets go of it, or of one who died with it, unless the entry has changed."""


class FolderClaims:
    """Empty files in a folder of the claim's own, whose names say all (`ddlflow.store.entries`).

    Args:
        folder: of the claim; the folder around it has to be there.
        shared: several may hold it.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.folder, self._shared = folder, shared

    @property
    def place(self) -> str:
        return str(self.folder)

    def entries(self) -> list[Entry]:
        if self._shared:  # a change of the folder's makes NFS show it as it is, not as it was
            probe = self.folder / f"look-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                probe.touch()
                probe.unlink()
        return entries(self.folder)

    def take(self, mine: Entry) -> bool:
        draft = self.folder.with_name(f"{self.folder.name}.{mine.token}")
        draft.mkdir()
        try:
            (draft / mine.name).touch()
            draft.rename(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                (draft / mine.name).unlink(missing_ok=True)
                draft.rmdir()
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise
            return self._has(mine)
        return True

    def join(self, mine: Entry) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the last one left in this moment
                (self.folder / mine.name).touch()
                return

    def replace(self, found: Entry, new: Entry) -> bool:
        try:
            (self.folder / found.name).rename(self.folder / new.name)
        except FileNotFoundError:
            return self._has(new)
        return True

    def remove(self, entry: Entry) -> None:
        (self.folder / entry.name).unlink(missing_ok=True)  # not there: it has beaten
        with contextlib.suppress(OSError):  # there are others, or it is gone
            self.folder.rmdir()

    def _has(self, mine: Entry) -> bool:
        """Whether it was done after all: NFS asks again where an answer was lost, and hears no.

        Else the owner beat once more or let go, or another was faster.
        """
        return mine in entries(self.folder)
