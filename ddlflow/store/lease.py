"""One command at a time works in one place, on many hosts: a lease with an owner and a beat.

In a bucket it is an object (`ddlflow.store.objects`), and every change a conditional write. In a
folder a lease is a folder with one empty file in it, whose name says all::

    .KEY.lease/TOKEN.BEAT.OWNER

Why two never hold it: every change is one rename or removal that names the file it expects, and a
file system does that whole or refuses.

- It is *taken* by renaming a folder that has the file in it to the lease's name. That works only
  where there is no folder, or an empty one.
- It *beats* by renaming the file to the next BEAT. That fails where another has taken it over.
- It is *taken over* by renaming the very file that was watched. Of several who try it, one finds
  the file; none does where the owner has beaten once more.
- It is *released* by removing the own file, and the folder if it is empty. A process that slept
  through a take-over names a file that is gone, and harms nobody.

So there is never more than one file, and a server that keeps the storage (NFS) decides as a local
disk does, however old a host's view of the folder is. No clock is compared between hosts, and a
beat takes no room on a full disk.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ddlflow.errors import DdlflowError
from ddlflow.store.claims import Claims, FolderClaims
from ddlflow.store.entries import Entry, Watch, is_gone, tokens
from ddlflow.store.owner import Owner, state_of, this_owner

BEAT_S = 2.0
STALE_S = 30.0  # several times what NFS may show of the past (3 s, as long as a folder changes)
LOOK_S = 0.5


def current(claims: Claims | Path) -> Entry | None:
    """Who holds the lease; None where nobody does."""
    return _last(_claims(claims).entries())


class Lease:
    """A lease that this process holds; a thread keeps it. See `held`."""

    def __init__(
        self, claims: Claims, entry: Entry, on_lost: Callable[[DdlflowError], None], beat_s: float
    ) -> None:
        self._claims = claims
        self._entry, self._on_lost, self._beat_s = entry, on_lost, beat_s
        self._mutex = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ddlflow-lease", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Returns if the lease is still ours.

        Raises:
            DdlflowError: it is not; says who holds it.
            OSError: the storage does not answer.
        """
        with self._mutex:
            new = replace(self._entry, beat=self._entry.beat + 1)
            if not self._claims.replace(self._entry, new):
                # Ours all the same, if a signal came between the change and its note here.
                found = self._own()
                if found is None:
                    raise _lost(self._claims.place, current(self._claims))
                new = found
            self._entry = new

    def release(self) -> None:
        """Lets go of it, if it is still ours; a second call does nothing."""
        self._released.set()
        self._thread.join()
        tokens.discard(self._entry.token)
        with contextlib.suppress(OSError):  # who comes next finds that this process is gone
            found = self._own()
            if found is not None:
                self._claims.remove(found)

    def _own(self) -> Entry | None:
        found = [entry for entry in self._claims.entries() if entry.token == self._entry.token]
        return _last(found)

    def _keep(self) -> None:
        while not self._released.wait(self._beat_s):
            try:
                self.confirm()
            except DdlflowError as error:
                self._on_lost(error)
                return
            except OSError:  # a storage with a bad moment does not end healthy work
                continue


@contextlib.contextmanager
def held(
    claims: Claims | Path,
    what: str,
    *,
    say: Callable[[str], None],
    on_lost: Callable[[DdlflowError], None],
    beat_s: float = BEAT_S,
    stale_s: float = STALE_S,
) -> Iterator[Lease]:
    """Holds a lease; waits while another process does, unless that one is dead (`Watch`).

    Args:
        claims: of the lease, or its folder; the folder around that has to be there.
        what: is worked on, for people.
        say: takes a sentence where another process holds it, or did.
        on_lost: called once, in the lease's thread, when another process has taken it over: this
            one slept too long. It has to end the work.
        beat_s: seconds between beats.
        stale_s: seconds without a beat.

    Raises:
        OSError: the storage cannot be written.
    """
    claims = _claims(claims)
    mine = Entry(uuid.uuid4().hex, 0, this_owner())
    tokens.add(mine.token)
    try:
        _wait(claims, mine, what, say, stale_s)
        lease = Lease(claims, mine, on_lost, beat_s)
        try:
            yield lease
        finally:
            lease.release()
    finally:
        tokens.discard(mine.token)


def held_now(
    folder: Path,
    *,
    on_lost: Callable[[DdlflowError], None],
    beat_s: float,
) -> Lease | None:
    """Holds a lease until it is released; None, at once, while a process does that may live.

    One that cannot be seen from here is taken for dead by its silence on the storage's clock
    (`ddlflow.store.owner`): nobody waits, so nobody can watch it.

    Args:
        folder: of the lease.
        on_lost: see `held`.
        beat_s: seconds between beats; few against ``owner.SILENT_S``.

    Raises:
        OSError: the storage cannot be written.
    """
    claims = FolderClaims(folder)
    mine = Entry(uuid.uuid4().hex, 0, this_owner())
    tokens.add(mine.token)
    found = current(claims)
    if found is None:
        is_ours = claims.take(mine)
    else:
        is_ours = not _may_live(folder, found) and claims.replace(found, mine)
    if not is_ours:
        tokens.discard(mine.token)
        return None
    return Lease(claims, mine, on_lost, beat_s)


def holder(folder: Path) -> Owner | None:
    """Who holds a lease, and may live."""
    found = current(folder)
    return found.owner if found is not None and _may_live(folder, found) else None


def _may_live(folder: Path, entry: Entry) -> bool:
    if entry.owner.is_here:
        return not is_gone(entry)
    try:
        return state_of(entry.owner, folder) != "lost"  # a beat changes the folder
    except FileNotFoundError:  # let go of in this moment
        return False


def _claims(place: Claims | Path) -> Claims:
    return FolderClaims(place) if isinstance(place, Path) else place


def _last(found: list[Entry]) -> Entry | None:
    return found[-1] if found else None


def _wait(
    claims: Claims, mine: Entry, what: str, say: Callable[[str], None], stale_s: float
) -> None:
    """Returns when the lease is taken."""
    named = ""
    watch = Watch(stale_s, LOOK_S)
    while True:
        found = current(claims)
        if found is None:
            if claims.take(mine):
                return
        elif why := watch.why_dead(found):
            if claims.replace(found, mine):
                say(f"taken over from {found.owner.words}, which {why}: {what}")
                return
        elif found.token != named:
            say(f"waiting: {found.owner.words} works on {what}")
            named = found.token
        time.sleep(LOOK_S)


def _lost(place: str, found: Entry | None) -> DdlflowError:
    if found is None:
        return DdlflowError(
            f"{place} is gone: it was removed while this process worked under it, or another one "
            "took it over and is done. Nothing more was written here. Run the same command again: "
            "it goes on from what is finished."
        )
    return DdlflowError(
        f"{found.owner.words} has taken over the work of this one, which was not heard of for long "
        f"(suspended, or cut off from the storage): {place}. Nothing more was written here. "
        "Let that process end, or end it and run the same command again."
    )
