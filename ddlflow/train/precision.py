"""The forward pass in the precision that the pipeline names."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ddlflow.models.call import Batch, call
from ddlflow.train.tasks.task import Loss, Task

LossOf = Callable[[Batch], Loss]


def loss_of(
    net: nn.Module,
    task: Task,
    precision: Literal["float32", "bf16"],
    device: str,
    *,
    inputs: Sequence[str],
) -> LossOf:
    """The model's forward pass and the loss of its outputs, in one call.

    With bf16 the matrix products of the forward and the backward pass are computed in bfloat16;
    weights, gradients, optimizer and loss stay float32, so nothing has to be scaled. Neither the
    world nor a restart changes what is computed.

    Args:
        net: the model.
        task: whose loss it is.
        precision: the pipeline's ``train.precision``.
        device: the kind of device, ``cpu`` or ``cuda``.
        inputs: names of the fields that the model may ask for.
    """

    model = call(net, inputs)

    def forward(batch: Batch) -> Tensor:
        if precision == "float32":
            outputs: Tensor = model(batch)
            return outputs
        with torch.autocast(device, torch.bfloat16):
            outputs = model(batch)
        return outputs.float()

    return lambda batch: task.loss(forward(batch), batch)
