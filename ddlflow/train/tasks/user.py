"""A loss of the user's in place of a built-in task's own."""

from collections.abc import Callable
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.models.user import bind
from ddlflow.spec.pipeline import UserObjective
from ddlflow.train.tasks.criterion import Criterion, of_user


def user_criterion(spec: UserObjective, function: Callable[..., Any] | None) -> Criterion:
    """The user's loss, bound to the pipeline's arguments; ``ddlflow.train.probe`` tries it.

    Args:
        spec: the pipeline's ``train.objective``. Outputs count as logits or numbers as
            ``spec.like`` says, so that predictions and metrics are those of ``like``.
        function: what ``spec.use`` was resolved to: called as ``function(outputs, labels,
            **arguments)``, gives the sum of the rows' losses (a scalar) or one loss a row [n]. No
            row's loss may depend on other rows: which rows are computed together is the cluster's
            choice.

    Raises:
        SpecError: the pipeline's arguments do not fit the function.
    """
    if function is None:
        raise SpecError(f"train.objective is {spec.use}, which has not been resolved to code.")
    arguments = bind(spec.use, function, spec.arguments, offered={}, num_positional=2)
    return of_user(spec.use, function, arguments)
