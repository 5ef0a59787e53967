"""The forward pass in the precision that the pipeline names."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ddlflow.train.tasks.objectives import Objective
from ddlflow.train.weights import ALL_ALIKE, Weighting

# (inputs, labels) -> the loss as a sum over the rows, float32
LossOf = Callable[[Sequence[Tensor], Tensor], Tensor]


def loss_of(
    net: nn.Module,
    objective: Objective,
    precision: Literal["float32", "bf16"],
    device: str,
    weighting: Weighting = ALL_ALIKE,
) -> LossOf:
    """The model's forward pass and the loss of its outputs, in one call.

    With bf16 the matrix products of the forward and the backward pass are computed in bfloat16;
    weights, gradients, optimizer and loss stay float32, so nothing has to be scaled. Neither the
    world nor a restart changes what is computed.

    Args:
        net: the model.
        objective: with the loss as a sum over rows.
        precision: the pipeline's ``train.precision``.
        device: the kind of device, ``cpu`` or ``cuda``.
        weighting: of the rows; their own weights are the last of the inputs.
    """

    def forward(inputs: Sequence[Tensor]) -> Tensor:
        if precision == "float32":
            outputs: Tensor = net(*inputs)
            return outputs
        with torch.autocast(device, torch.bfloat16):
            outputs = net(*inputs)
        return outputs.float()

    if weighting == ALL_ALIKE:
        return lambda inputs, labels: objective.loss_sum(forward(inputs), labels)

    def weighted(inputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        own = inputs[-1] if weighting.has_column else None
        outputs = forward(inputs if own is None else inputs[:-1])
        return objective.weighted_sum(outputs, labels, weighting.of_loss(labels, own))

    return weighted
