"""The forward pass in the precision that the pipeline names."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ddlflow.train.objectives import Objective

# (inputs, labels) -> the loss as a sum over the rows, float32
LossOf = Callable[[Sequence[Tensor], Tensor], Tensor]


def loss_of(
    net: nn.Module, objective: Objective, precision: Literal["float32", "bf16"], device: str
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
    """
    if precision == "float32":
        return lambda inputs, labels: objective.loss_sum(net(*inputs), labels)

    def in_bf16(inputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            outputs = net(*inputs)
        return objective.loss_sum(outputs.float(), labels)

    return in_bf16
