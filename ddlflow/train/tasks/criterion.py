"""The loss of outputs against labels, as a sum over rows: what a task of one label minimises.

A sum, because the gradient of a global batch is the sum over its rows divided by their number:
slices of any size add up exactly, and a short last batch weighs what it should.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ddlflow.errors import SpecError

# (outputs, labels) -> the sum over the rows [], or one loss a row [n].
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A loss of outputs and labels, both [n] (of many classes, outputs [n, classes]).

    Attributes:
        name: for messages: a built-in name or ``module:function``.
        function: gives the sum over the rows, or one loss a row.
        row_losses: as ``function``, a loss a row; None where that is not known of a user's.
        is_built_in: whether it is one of ddlflow's own, whose gradient has a formula.
    """

    name: str
    function: LossFunction
    row_losses: LossFunction | None = None
    is_built_in: bool = False

    def sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of all rows together, a scalar that gradients flow through."""
        loss = self.function(outputs, labels)
        return loss if loss.dim() == 0 else loss.sum()

    def weighted_sum(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss of all rows together, each times its weight [n].

        Raises:
            SpecError: a loss of the user's that gives the sum of the rows alone.
        """
        losses = (self.row_losses or self.function)(outputs, labels)
        if losses.shape != weights.shape:
            raise SpecError(
                f"{self.name} gives the sum over the rows, and rows have weights (data.weight or "
                "train.class_weights). Return one loss a row, such as with reduction='none'."
            )
        return (losses * weights).sum()


def built_in(name: str, function: Callable[..., Tensor]) -> Criterion:
    """One of ddlflow's own losses, given as a function with torch's ``reduction``."""
    by_sum, by_row = (partial(function, reduction=how) for how in ("sum", "none"))
    return Criterion(name, by_sum, by_row, is_built_in=True)


def of_user(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Criterion:
    """A function of the user's with the pipeline's arguments."""
    return Criterion(name, partial(function, **arguments))
