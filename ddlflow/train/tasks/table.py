"""The built-in tasks by name, and the task that a pipeline means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddlflow.spec.code import resolve
from ddlflow.spec.pipeline import ObjectiveName, UserObjective
from ddlflow.train.tasks.binary import BinaryTask
from ddlflow.train.tasks.multiclass import MulticlassTask
from ddlflow.train.tasks.regression import RegressionTask
from ddlflow.train.tasks.target import UNKNOWN, LabelTarget
from ddlflow.train.tasks.user import user_criterion

LabelTask = BinaryTask | MulticlassTask | RegressionTask  # each a ``Task``
BUILT_IN: dict[ObjectiveName, type[BinaryTask] | type[MulticlassTask] | type[RegressionTask]] = {
    "binary": BinaryTask,
    "multiclass": MulticlassTask,
    "regression": RegressionTask,
}


def task_for(
    spec: ObjectiveName | UserObjective,
    user_function: Callable[..., Any] | None = None,
    label: LabelTarget = UNKNOWN,
) -> LabelTask:
    """The task that a pipeline names.

    Args:
        spec: the pipeline's ``train.objective``.
        user_function: for user code, what ``spec.use`` was resolved to.
        label: what is known of it.

    Raises:
        SpecError: the pipeline's arguments do not fit the user's function.
    """
    if isinstance(spec, UserObjective):
        return BUILT_IN[spec.like](user_criterion(spec, user_function), label)
    return BUILT_IN[spec](label=label)


def resolved_task(
    spec: ObjectiveName | UserObjective, code: Path | None, label: LabelTarget = UNKNOWN
) -> LabelTask:
    """As ``task_for``, with user code found in its folder.

    Raises:
        SpecError: as ``task_for``; there is no such code.
    """
    if isinstance(spec, UserObjective):
        return task_for(spec, resolve(spec.use, code, "train.objective.use"), label)
    return task_for(spec, label=label)
