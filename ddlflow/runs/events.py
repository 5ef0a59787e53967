"""What a training or a search says as it goes: to the record, the screen and a reproduction."""

from collections.abc import Callable
from dataclasses import dataclass

from ddlflow.runs.results import EpochRow, TrainAttempt
from ddlflow.sweep.choose.table import TrialRow


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained and validated: its row of history."""

    row: EpochRow

    @property
    def epoch(self) -> int:
        """From 1."""
        return int(self.row["epoch"] or 0)


@dataclass(frozen=True, slots=True)
class StepDigest:
    """An entry of the digest trail: of the parameters after a step, with the mean loss so far."""

    step: int
    digest: str
    loss: float


TrainEvent = EpochDone | StepDigest | TrainAttempt  # an attempt: as it begins, and as it fails
OnTrainEvent = Callable[[TrainEvent], None]
OnTrial = Callable[[TrialRow], None]  # as each trial ends


def ignore(event: object) -> None:
    """The listener of someone who wants no events."""
