"""What came of a member, without its weights: what a worker returns and a piece's file holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ddlflow.errors import DdlflowError
from ddlflow.sweep.member import Result

EpochRow = Mapping[str, int | float | None]  # open: epoch, step, loss, lr, rows_per_s, val_METRIC


@dataclass(frozen=True, slots=True)
class MemberResult:
    """Of one member.

    Attributes:
        id: the member's.
        status: done, failed (see ``reason``), pruned, or going: at a rung, from which the next
            task goes on. apart: its stack failed as a whole; it is to be given as a piece of its
            own.
        reason: a sentence; empty where it is done or going.
        history: a row an epoch; a metric that is none (the AUROC of rows of one class) is None,
            as JSON knows no NaN.
        best_epoch: whose weights these are, from 1; 0 where no epoch was ended, or it is going.
        steps: optimizer steps taken.
        seconds: of training and scoring, the member's even share of its stack's.
        fused: how many members were in its stack; 1 where it was trained apart.
    """

    id: str
    status: Literal["done", "failed", "pruned", "going", "apart"]
    reason: str
    history: Sequence[EpochRow]
    best_epoch: int
    steps: int
    seconds: float
    fused: int

    @property
    def counted_row(self) -> EpochRow:
        """The epoch that counts: the best with early stopping, else the last; empty of none."""
        return self.history[(self.best_epoch or len(self.history)) - 1] if self.history else {}


def of_result(result: Result) -> MemberResult:
    """A result without its tensors."""
    return MemberResult(
        id=result.id,
        status=result.status,
        reason=result.reason,
        history=known_rows(result.history),
        best_epoch=result.best_epoch,
        steps=result.steps,
        seconds=result.seconds,
        fused=result.fused,
    )


def untrained(id_: str, reason: str, status: Literal["failed", "apart"] = "failed") -> MemberResult:
    """Of a member that has no epoch to speak of."""
    return MemberResult(id_, status, reason, [], 0, 0, 0.0, 1)


def known_rows(history: Sequence[Mapping[str, float]]) -> list[EpochRow]:
    """Rows of history with None for what is not finite."""
    return [
        {name: value if math.isfinite(value) else None for name, value in row.items()}
        for row in history
    ]


def to_json(results: Sequence[MemberResult]) -> dict[str, Any]:
    """What a piece's file holds."""
    return {"results": [asdict(one) for one in results]}


def from_json(values: Any, where: str) -> list[MemberResult]:
    """The inverse of `to_json`.

    Raises:
        DdlflowError: they are of another form; it names ``where``.
    """
    try:
        return [MemberResult(**one) for one in values["results"]]
    except (KeyError, TypeError) as error:
        raise DdlflowError(
            f"{where} is damaged ({error}). Remove it, or do the work again with --fresh."
        ) from None
