"""Members under training, whichever way: what ``run.py`` and a search need of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ddlflow.sweep.member import Result
from ddlflow.train.saved.checkpoint import Plain


@dataclass(frozen=True, slots=True)
class MemberEpoch:
    """A member has ended an epoch; ``row`` is that of its history."""

    id: str
    row: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EpochProgress:
    """At most twice a second: rows that an epoch, from 1, has done, of all members together."""

    epoch: int
    done: int
    total: int


Emit = Callable[[MemberEpoch | EpochProgress], None]


class Trained(Protocol):
    """Members under training, between two epochs: a ``Stack``, or a ``Solo``.

    Attributes:
        epoch: epochs done.
        results: of the members that have left.
    """

    epoch: int
    results: dict[str, Result]

    @property
    def alive(self) -> list[str]:
        """The ids of the members that go on."""
        ...

    @property
    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Of the members that go on: a row an epoch."""
        ...

    @property
    def seconds(self) -> dict[str, float]:
        """That the members that go on have taken, each its share."""
        ...

    def run_epoch(self) -> None:
        """Trains and scores one epoch; members that ended or failed leave."""
        ...

    def drop(self, ids: Iterable[str], reason: str) -> None:
        """These members leave as pruned."""
        ...

    def snapshot(self) -> Plain:
        """Tensors and plain values, for ``ddlflow.train.saved.checkpoint``."""
        ...

    def restore(self, saved: Plain) -> None:
        """Goes back to a snapshot; a member that had left by then leaves, with its result."""
        ...
