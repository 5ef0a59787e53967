"""The names of a search's trainings: ``TRIAL``, or ``TRIAL/FOLD`` where a trial has one a fold."""

from collections.abc import Sequence

from ddlflow.sweep.task import PieceTask


def member_ids(trial: int, folds: Sequence[int | None]) -> list[str]:
    """Of the trainings of a trial, one a fold; None: the training rows are not dealt to folds."""
    return [str(trial) if fold is None else f"{trial}/{fold}" for fold in folds]


def trial_of(member: str) -> int:
    """The number of the trial that a training is one of."""
    return int(member.partition("/")[0])


def trials_of(task: PieceTask) -> set[int]:
    """The numbers of the trials that a piece has trainings of."""
    return {trial_of(member.id) for member in task.members}
