"""One decides, all agree: which checkpoint the ranks go on from, and that they stay alike.

Ranks on different hosts may see a shared folder differently for a while: NFS shows old listings, a
read may fail, bytes may be damaged on the way. So rank 0 alone looks for the newest checkpoint that
is whole, and tells the others its name and SHA-256; they read exactly that. Before the first step,
and at each entry of the digest trail, all ranks compare where they are and what weights they have.
A message each time of a few numbers: nothing that a step would notice.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist

from ddlflow.errors import CheckpointError, TrainingError
from ddlflow.store.store import Place, Store, store_of
from ddlflow.train.parallel.tree import all_gather
from ddlflow.train.saved import checkpoint
from ddlflow.train.saved.checkpoint import Plain, Say
from ddlflow.train.saved.state import State

# Source: nfs(5), acdirmax: a listing may be so old.
PATIENCE_S = 60.0
_LOOK_S = (0.2, 5.0)  # between two looks: at first, and at most
NONE = -1
log = logging.getLogger(__name__)


class Ranks:
    """The ranks of an attempt, as each of them asks the others; one alone asks nobody.

    Args:
        rank: this rank.
        world: how many there are.
        group: the process group; None where the world is 1.
        device: whose memory the group sends.
    """

    def __init__(
        self, rank: int, world: int, group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        self.rank, self.world = rank, world
        self._group, self._device = group, device

    def gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        """What each rank gave, by rank; all give equally many."""
        if self.world == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        everyone = own.new_empty(self.world * len(numbers))
        all_gather(everyone, own, self._group)
        rows: list[list[int]] = everyone.view(self.world, -1).tolist()
        return rows


def resumed(
    place: Place, ranks: Ranks, say: Say, *, at_least: int = 0, patience_s: float = PATIENCE_S
) -> Plain | None:
    """The checkpoint that all ranks go on from, by rank 0's choice; None: from the start.

    Args:
        place: of the training's checkpoints.
        ranks: all of them call this.
        say: gets a sentence about what is wrong.
        at_least: a step whose checkpoint is known to be written: rank 0 waits until it is seen.
        patience_s: how long a rank waits for what it does not see yet.

    Raises:
        CheckpointError: this rank cannot read what rank 0 has read.
    """
    folder = store_of(place)
    saved: Plain | None = None
    choice = [NONE, 0, *_numbers("")]
    if ranks.rank == 0:
        _wait_for(folder, at_least, say, patience_s)
        found = checkpoint.newest(folder, say)
        if found is not None:
            saved, name = found.state, found.name
            choice = [
                checkpoint.attempt_of(name),
                checkpoint.step_of(name),
                *_numbers(found.sha256),
            ]
    attempt, step, *digest = ranks.gathered(choice)[0]
    if ranks.rank == 0 or attempt == NONE:
        return saved
    name = checkpoint.file_name(attempt, step)
    return _exactly(folder, name, digest, ranks.rank, patience_s)


def compare(state: State, digest: str, *, ranks: Ranks, with_digests: bool = True) -> None:
    """Returns where every rank is at the same step with the same weights.

    Args:
        state: of this rank.
        digest: of its weights.
        ranks: all of them call this, at the same step.
        with_digests: else their weights may differ in the last bits.

    Raises:
        TrainingError: they have parted; every rank raises the same.
    """
    if ranks.world == 1:
        return
    rows = ranks.gathered(
        [state.epoch, state.step, state.steps, *_numbers(digest if with_digests else "")]
    )
    if all(row == rows[0] for row in rows):
        return
    alike: dict[tuple[int, ...], list[int]] = {}
    for rank, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(rank)
    raise TrainingError(
        f"The ranks are not alike any more: {'; '.join(map(_words, alike.items()))}. Their "
        "gradients must not be added up. Look for randomness of the model's own that train.seed "
        "does not set, for hosts of unlike processors or libraries and for faulty memory; then "
        "start anew with --fresh."
    )


def _words(entry: tuple[tuple[int, ...], list[int]]) -> str:
    (epoch, step, steps, *digest), ranks = entry
    who = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
    weights = f" with weights {_text(digest)[:12]}" if any(digest) else ""
    return f"{who} at epoch {epoch + 1}, step {step} ({steps} in all){weights}"


def _wait_for(folder: Store, step: int, say: Say, patience_s: float) -> None:
    """Returns once a checkpoint of a step, or of a later one, is listed."""

    def seen() -> bool:
        return any(checkpoint.step_of(name) >= step for name in checkpoint.files(folder))

    if step and not _until(seen, patience_s):
        say(
            f"The checkpoint of step {step} was written, and is not to be seen in "
            f"{folder.location} after {patience_s:g} s. The newest that is seen there is used."
        )


def _exactly(folder: Store, name: str, digest: list[int], rank: int, patience_s: float) -> Plain:
    """The state in a file, whose bytes have to be those that rank 0 read."""
    state: Plain = {}
    problem = ""

    def read() -> bool:
        nonlocal state, problem
        try:
            found = checkpoint.read(folder, name)
        except CheckpointError as error:
            problem = str(error)
            return False
        state, path = found.state, f"{folder.location}/{name}"
        problem = f"checkpoint {path} holds something else than what rank 0 read."
        return _numbers(found.sha256) == digest

    if not _until(read, patience_s):
        raise CheckpointError(
            f"Rank {rank} cannot go on from where rank 0 does: {problem} It tried for "
            f"{patience_s:g} s. Every worker has to see the same storage: look at that file, and "
            "at what is mounted, on this rank's host; then the same command goes on."
        )
    return state


def _until(done: Callable[[], bool], patience_s: float) -> bool:
    """Asks more and more seldom; whether it came to be."""
    give_up = time.monotonic() + patience_s
    pause_s, most_s = _LOOK_S
    while not done():
        if time.monotonic() >= give_up:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, most_s)
    return True


def _numbers(digest: str) -> list[int]:
    """A SHA-256 as four whole numbers; an empty one as zeros."""
    numbers: list[int] = np.frombuffer(bytes.fromhex(digest or "00" * 32), "<i8").tolist()
    return numbers


def _text(numbers: Sequence[int]) -> str:
    return np.array(numbers, "<i8").tobytes().hex()
