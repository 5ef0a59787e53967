"""From the gradient of a batch to the next weights: one step, for every loop that makes steps."""

from collections.abc import Callable

import torch
from torch import nn

from ddlflow.spec.pipeline import Optimizer, Training
from ddlflow.train.parallel.replica import Replica
from ddlflow.train.penalty import add_penalty_gradient, penalised, stop_at_zero
from ddlflow.train.schedules import factor, is_constant


def optimizer_step(
    replica: Replica,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    spec: Training,
    *,
    steps_per_epoch: int,
) -> Callable[[int], None]:
    """What is called with the step's number, from 0, once the gradients are there.

    The penalty's gradient is added before the norm is clipped; the learning rate is a function of
    the number alone.

    Args:
        replica: clips the gradient, of which it may hold a part.
        net: whose parameters have gradients.
        optimizer: over them.
        spec: with penalty, clip_norm, schedule and optimizer; no L-BFGS.
        steps_per_epoch: for the schedule.
    """
    assert isinstance(spec.optimizer, Optimizer)  # lbfgs: ddlflow.train.full_batch
    base = spec.optimizer.lr
    weights = penalised(net) if spec.penalty.l1 or spec.penalty.l2 else []
    scheduled, total = not is_constant(spec.schedule), steps_per_epoch * spec.epochs

    def step(number: int) -> None:
        signs = add_penalty_gradient(weights, spec.penalty) if weights else ()
        if spec.clip_norm is not None:
            replica.clip(spec.clip_norm)
        if scheduled:
            rate = factor(spec.schedule, number, steps_per_epoch=steps_per_epoch, total_steps=total)
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        optimizer.step()
        if signs:
            stop_at_zero(weights, signs)

    return step
