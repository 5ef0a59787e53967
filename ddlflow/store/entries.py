"""Empty files whose names say all: who holds what a folder stands for, and that it lives.

    TOKEN.BEAT.OWNER

Its owner renames a file to the next BEAT now and again. Every change names the file that it
expects, and a file system does that whole or refuses.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ddlflow.store.owner import Owner, owner_of, this_owner

# Entries of this process by their tokens: one that a signal left behind is not waited for.
tokens: set[str] = set()


@dataclass(frozen=True, slots=True)
class Entry:
    """The name of one file.

    Attributes:
        token: of this one holding.
        beat: how often its owner was heard of.
        owner: who holds it.
    """

    token: str
    beat: int
    owner: Owner

    @property
    def name(self) -> str:
        return f"{self.token}.{self.beat}.{self.owner.name}"


def entries(folder: Path) -> list[Entry]:
    """Who is in a folder; nobody where there is none. The last that was heard of comes last.

    A listing that a beat overtakes may show both of its names, or none.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):  # noqa: PTH208 # names are all that is wanted
            if (entry := entry_of(name)) is not None:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.beat)


def entry_of(name: str) -> Entry | None:
    """An entry by its name; None if it is no entry's."""
    token, _, rest = name.partition(".")
    beat, _, owner = rest.partition(".")
    known = owner_of(owner) if beat.isdecimal() else None
    return None if known is None else Entry(token, int(beat), known)


def own(folder: Path, token: str) -> Entry | None:
    """The entry of a token; None where it is gone."""
    return next((entry for entry in reversed(entries(folder)) if entry.token == token), None)


def is_gone(entry: Entry) -> bool:
    """Whether the owner of an entry, which is here, has ended or let go of it."""
    if entry.owner == this_owner():
        return entry.token not in tokens
    return not entry.owner.is_alive


class Watch:
    """Who is dead, by what one process sees of a folder, look by look.

    A process that this one can see (`Owner.is_here`) is dead when there is no such process. Another
    one is taken for dead when its file did not beat for ``stale_s``, on this host's clock.

    Args:
        stale_s: seconds without a beat.
        look_s: seconds from one look to the next.
    """

    def __init__(self, stale_s: float, look_s: float) -> None:
        self._stale_s, self._look_s = stale_s, look_s
        self._seen: dict[str, tuple[int, float, float]] = {}

    def why_dead(self, entry: Entry) -> str | None:
        """A clause that says why its owner is taken for dead; None while it may live."""
        if entry.owner.is_here:
            return "is gone" if is_gone(entry) else None
        now = time.monotonic()
        beat, silent_s, looked = self._seen.get(entry.token, (entry.beat, 0.0, now))
        # Each look counts for little: a waiter that slept itself has watched nobody.
        silent_s += min(now - looked, 2 * self._look_s)
        if beat != entry.beat:
            silent_s = 0.0
        self._seen[entry.token] = (entry.beat, silent_s, now)
        return f"has not been heard of for {silent_s:.0f} s" if silent_s >= self._stale_s else None
