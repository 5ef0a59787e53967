"""Numbers of attempts that rise for ever: how an attempt that was cut off knows that it is over.

A rank 0 that was stopped, swapped out or cut off from its driver may wake up long after another
attempt has begun. An empty file a number, made by exclusive creation, gives each attempt a number
of its own on any file system, whatever the hosts' clocks say; whoever finds a higher one than its
own writes nothing more.

Source: the fencing tokens of Chubby (Burrows, OSDI 2006).
"""

from ddlflow.errors import CheckpointError
from ddlflow.store.store import Place, Store, store_of


def claim(place: Place) -> int:
    """Begins an attempt in a training's place of checkpoints: its number, from 1.

    Raises:
        OSError: the storage cannot be written.
    """
    folder = store_of(place)
    number = _highest(folder)
    while True:
        number += 1
        if folder.write_if_absent(f"attempt-{number:06d}", b""):
            return number
        # There is one: a listing that NFS kept from before, or another was faster.


def check(place: Place, attempt: int) -> None:
    """Returns if no later attempt has begun.

    Raises:
        CheckpointError: one has: this one's work is not wanted any more.
    """
    if is_over(place, attempt):
        training = store_of(place).location.rpartition("/")[0]
        raise CheckpointError(
            f"another attempt of the training in {training} has begun, and attempt {attempt} "
            "was cut off: it writes nothing more."
        )


def is_over(place: Place, attempt: int) -> bool:
    """Whether a later attempt has begun."""
    return _highest(store_of(place)) > attempt


def _highest(folder: Store) -> int:
    names = (name for name in folder.list() if name.startswith("attempt-"))
    return max((int(name.split("-")[1]) for name in names), default=0)
