"""What is minimised: the loss as a sum over rows, and what the outputs mean.

A sum, because the gradient of a global batch is the sum over its rows divided by their number:
slices of any size add up exactly, and a short last batch weighs what it should.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.errors import SpecError
from ddlflow.models.user import bind
from ddlflow.spec.pipeline import ObjectiveName, UserObjective

# (outputs, labels) -> the sum over the rows [], or one loss a row [n].
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss and the meaning of the outputs.

    ``outputs`` are the model's: float32 [n] for binary (logits of the second class) and
    regression, [n, classes] for multiclass (logits). ``labels`` are [n]: 0 or 1, class indices
    or numbers, of any dtype.

    Attributes:
        name: for messages: a built-in name or ``module:function``.
        kind: how labels are read and which metrics and predictions there are.
        loss: the function behind ``loss_sum``.
        row_losses: as ``loss``, a loss a row; None where that is not known of a user's.
        is_built_in: whether ``loss`` is one of ddlflow's own, whose gradient has a formula.
    """

    name: str
    kind: ObjectiveName
    loss: Loss
    is_built_in: bool = False
    row_losses: Loss | None = None

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of all rows together, a scalar that gradients flow through."""
        loss = self.loss(outputs, labels)
        return loss if loss.dim() == 0 else loss.sum()

    def weighted_sum(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss of all rows together, each times its weight [n].

        Raises:
            SpecError: a loss of the user's that gives the sum of the rows alone.
        """
        losses = (self.row_losses or self.loss)(outputs, labels)
        if losses.shape != weights.shape:
            raise SpecError(
                f"{self.name} gives the sum over the rows, and rows have weights (data.weight or "
                "train.class_weights). Return one loss a row, such as with reduction='none'."
            )
        return (losses * weights).sum()

    def num_outputs(self, num_classes: int | None) -> int:
        """How many outputs the model must have: the classes where there are many, else one."""
        if self.kind != "multiclass":
            return 1
        if num_classes is None or num_classes < 2:
            raise SpecError(
                f"train.objective {self.name} reads the label as classes, but {num_classes or 0} "
                "are known. Choose a label with two classes or more, or objective: regression."
            )
        return num_classes

    def predictions(self, outputs: Tensor) -> dict[str, Tensor]:
        """What is written for each row.

        Returns:
            binary: ``probability`` float32 [n], of the second class.
            multiclass: ``probabilities`` float32 [n, classes] and ``index`` int64 [n], of the
            likeliest class.
            regression: ``prediction`` float32 [n].
        """
        if self.kind == "binary":
            return {"probability": torch.sigmoid(outputs)}
        if self.kind == "multiclass":
            probabilities = torch.softmax(outputs, dim=1)
            return {"probabilities": probabilities, "index": outputs.argmax(dim=1)}
        return {"prediction": outputs}


def _binary(outputs: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        outputs, labels.to(outputs.dtype), reduction=reduction
    )


def _multiclass(outputs: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.cross_entropy(outputs, labels.to(torch.int64), reduction=reduction)


def _regression(outputs: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.mse_loss(outputs, labels.to(outputs.dtype), reduction=reduction)


BUILT_IN: dict[ObjectiveName, Callable[..., Tensor]] = {
    "binary": _binary,  # log loss
    "multiclass": _multiclass,  # log loss
    "regression": _regression,  # squared error
}


def objective_for(
    spec: ObjectiveName | UserObjective, user_function: Callable[..., Any] | None = None
) -> Objective:
    """The objective that a pipeline names; ``ddlflow.train.probe`` tries it on a few rows.

    Args:
        spec: the pipeline's ``train.objective``.
        user_function: for user code, what ``spec.use`` was resolved to: called as
            ``function(outputs, labels, **arguments)``, gives the sum of the rows' losses (a
            scalar) or one loss a row [n]. No row's loss may depend on other rows: which rows
            are computed together is the cluster's choice. Outputs count as logits or numbers as
            ``spec.like`` says, so that predictions and metrics are those of ``like``.

    Raises:
        SpecError: the pipeline's arguments do not fit the function.
    """
    if not isinstance(spec, UserObjective):
        function = BUILT_IN[spec]
        return Objective(
            name=spec,
            kind=spec,
            loss=partial(function, reduction="sum"),
            row_losses=partial(function, reduction="none"),
            is_built_in=True,
        )
    if user_function is None:
        raise SpecError(f"train.objective is {spec.use}, which has not been resolved to code.")
    arguments = bind(spec.use, user_function, spec.arguments, offered={}, num_positional=2)
    return Objective(name=spec.use, kind=spec.like, loss=partial(user_function, **arguments))
