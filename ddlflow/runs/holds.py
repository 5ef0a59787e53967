"""What a command uses stays while it does: a file of each user in a folder beside it.

    .KEY.users/TOKEN.BEAT.OWNER

A user comes while it has the folder's lease (`ddlflow.store.lease`). Who makes the folder anew has
that too, and waits until nobody is left: so no user comes unseen, and none loses what it reads.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Set

from ddlflow.errors import DdlflowError
from ddlflow.store import lease
from ddlflow.store.claims import Claims
from ddlflow.store.entries import Entry, Watch, tokens
from ddlflow.store.lease import Lease
from ddlflow.store.owner import this_owner
from ddlflow.store.store import Place, Store, store_of


@contextlib.contextmanager
def using(folder: Place, on_lost: Callable[[DdlflowError], None]) -> Iterator[str]:
    """Uses a folder, whose lease this process has as it begins; yields the token of the use.

    Args:
        folder: stays as it is meanwhile.
        on_lost: called once, in a thread, when it was taken for dead and the folder is not kept any
            more: this process slept too long. It has to end the work.

    Raises:
        OSError: the storage cannot be written.
    """
    folder = store_of(folder)
    users, mine = _users(folder), Entry(uuid.uuid4().hex, 0, this_owner())

    def lost(_: DdlflowError) -> None:
        text = (
            f"{folder.location} may be made anew by another command: this process was not heard of "
            "for long (suspended, or cut off from the storage). Run the same command again."
        )
        on_lost(DdlflowError(text))

    tokens.add(mine.token)
    users.join(mine)
    held = Lease(users, mine, lost, lease.BEAT_S)
    try:
        yield mine.token
    finally:
        held.release()


class Uses:
    """All that one command uses, until it is closed.

    Args:
        on_lost: see `using`.
    """

    def __init__(self, on_lost: Callable[[DdlflowError], None]) -> None:
        self._on_lost = on_lost
        self._stack = contextlib.ExitStack()
        self._tokens: dict[Store, str] = {}

    def __contains__(self, folder: Store) -> bool:
        return folder in self._tokens

    def add(self, folder: Store) -> None:
        """Uses a folder from now on; this process has its lease."""
        if folder not in self._tokens:
            self._tokens[folder] = self._stack.enter_context(using(folder, self._on_lost))

    def wait_for_others(self, folder: Store, say: Callable[[str], None]) -> None:
        """See `wait_for_users`."""
        wait_for_users(folder, set(self._tokens.values()), say)

    def close(self) -> None:
        """Uses nothing any more."""
        self._tokens.clear()
        self._stack.close()


def wait_for_users(
    folder: Place,
    ours: Set[str],
    say: Callable[[str], None],
    stale_s: float = lease.STALE_S,
) -> None:
    """Returns when nobody uses a folder any more, whose lease this process has.

    Args:
        folder: to be made anew.
        ours: tokens of uses that do not count.
        say: takes a sentence for each user that is waited for.
        stale_s: a user that cannot be seen from here and is silent for so long is dead.
    """
    folder = store_of(folder)
    users, watch, named = _users(folder), Watch(stale_s, lease.LOOK_S), set(ours)
    while others := [entry for entry in users.entries() if entry.token not in ours]:
        for entry in others:
            if watch.why_dead(entry):
                users.remove(entry)
            elif entry.token not in named:
                say(
                    f"waiting: {entry.owner.words} uses {folder.location}, which is to be made anew"
                )
                named.add(entry.token)
        time.sleep(lease.LOOK_S)


def _users(folder: Store) -> Claims:
    return folder.claims("users", shared=True)
