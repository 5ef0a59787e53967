"""Members under training, whichever way: what ``run.py`` and a search need of them."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ddlflow.sweep.member import Result

Emit = Callable[[dict[str, Any]], None]


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

    def run_epoch(self) -> None:
        """Trains and scores one epoch; members that ended or failed leave."""
        ...

    def drop(self, ids: Iterable[str], reason: str) -> None:
        """These members leave as pruned."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Tensors and plain values, for ``ddlflow.train.saved.checkpoint``."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes back to a snapshot; a member that had left by then leaves, with its result."""
        ...
