"""What a training or a search says as it goes: to the record, the screen and a reproduction."""

from collections.abc import Callable

from ddlflow.runs.results import TrainAttempt
from ddlflow.sweep.choose.table import TrialRow
from ddlflow.train.events import DigestMarked, EpochEnded

TrainEvent = EpochEnded | DigestMarked | TrainAttempt  # an attempt: as it begins, and as it fails
OnTrainEvent = Callable[[TrainEvent], None]
OnTrial = Callable[[TrialRow], None]  # as each trial ends


def ignore(event: object) -> None:
    """The listener of someone who wants no events."""
