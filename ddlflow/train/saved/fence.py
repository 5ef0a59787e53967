"""Numbers of attempts that rise for ever: how an attempt that was cut off knows that it is over.

A rank 0 that was stopped, swapped out or cut off from its driver may wake up long after another
attempt has begun. An empty file a number, made by exclusive creation, gives each attempt a number
of its own on any file system, whatever the hosts' clocks say; whoever finds a higher one than its
own writes nothing more.

Source: the fencing tokens of Chubby (Burrows, OSDI 2006).
"""

from pathlib import Path

from ddlflow.errors import CheckpointError


def claim(folder: Path) -> int:
    """Begins an attempt in a training's folder of checkpoints: its number, from 1.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = _highest(folder)
    while True:
        number += 1
        try:
            (folder / f"attempt-{number:06d}").touch(exist_ok=False)
        except FileExistsError:  # a listing that NFS kept from before, or another was faster
            continue
        return number


def check(folder: Path, attempt: int) -> None:
    """Returns if no later attempt has begun.

    Raises:
        CheckpointError: one has: this one's work is not wanted any more.
    """
    if is_over(folder, attempt):
        raise CheckpointError(
            f"another attempt of the training in {folder.parent} has begun, and attempt {attempt} "
            "was cut off: it writes nothing more."
        )


def is_over(folder: Path, attempt: int) -> bool:
    """Whether a later attempt has begun."""
    return _highest(folder) > attempt


def _highest(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in folder.glob("attempt-*")), default=0)
