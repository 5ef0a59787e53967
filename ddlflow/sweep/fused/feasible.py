"""Found out before the start: why a model cannot be trained in a stack, in words.

A stacked model is tried on a few made rows against itself alone: outputs and gradients have to be
the same. What ``torch.func.vmap`` refuses, and what it would silently get wrong, is seen here.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddlflow.models.call import Batch, call
from ddlflow.models.pca import Projected
from ddlflow.models.user import one_line
from ddlflow.spec.pipeline import Lbfgs, Training
from ddlflow.sweep.fused import dense, dropout
from ddlflow.sweep.fused.head import Head
from ddlflow.sweep.fused.program import Inputs, Program, Step
from ddlflow.sweep.fused.vmapped import Vmapped
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.table import LabelTask
from ddlflow.train.tasks.target import LABEL

ROWS = (5, 3)
WITHIN = 1e-4  # of the greatest: float32 rounding of a deep model is far below, an error far above


def program_of(net: nn.Module, task: LabelTask, example: Batch, device: torch.device) -> Program:
    """The fastest program that takes the model."""
    if dense.takes(net):
        return dense.Dense(net, Head(task), device=device)
    program = Vmapped(net, Head(task), device=device)
    program.example = example
    return program


def why_apart(
    net: nn.Module,
    task: LabelTask,
    train: Training,
    *,
    num_features: int,
    category_sizes: Sequence[int] = (),
    device: torch.device,
) -> str | None:
    """A clause that says why models like this one are trained apart; None where a stack fits.

    Neither the model nor torch's random state changes.
    """
    own_way = _own_way(net, train)
    if own_way is not None:
        return own_way
    name = type(net).__qualname__
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            pairs = [copy.deepcopy(net).to(device).train() for _ in range(2)]
        except Exception as error:
            return f"{name} cannot be copied: {one_line(error)}"
        if any(parameter.dtype != torch.float32 for parameter in net.parameters()):
            return f"{name} has parameters that are not float32"
        with torch.no_grad():  # two models that are unlike
            for one in pairs:
                for parameter in one.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        inputs = made_inputs(max(ROWS), num_features, category_sizes, device)
        labels = task.example(max(ROWS), device)[LABEL]
        try:
            return _difference(pairs, task, inputs, labels)
        except Exception as error:
            return f"torch.func.vmap does not take {name}: {one_line(error)}"


def _own_way(net: nn.Module, train: Training) -> str | None:
    """What of a training's settings no stack has; None where there is nothing."""
    if isinstance(train.optimizer, Lbfgs):
        return "optimizer lbfgs goes to each optimum in steps of its own, over all rows"
    if isinstance(net, Projected):
        return "pca is fitted to the rows of each training"
    return None if train.precision == "float32" else f"precision {train.precision} is trained apart"


def made_inputs(
    rows: int, num_features: int, category_sizes: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Rows of normal features and random codes, always the same."""
    own = torch.Generator().manual_seed(0)
    features = torch.randn(rows, num_features, generator=own).to(device)
    if not category_sizes:
        return {"features": features}
    columns = [torch.randint(size, (rows,), generator=own) for size in category_sizes]
    return {"features": features, "categories": torch.stack(columns, 1).int().to(device)}


def _difference(
    nets: list[nn.Module], task: LabelTask, inputs: Batch, labels: Tensor
) -> str | None:
    """The first thing in which two stacked models are unlike the two alone."""
    device = labels.device
    program = program_of(nets[0], task, {n: one[:1] for n, one in inputs.items()}, device)
    weights = torch.zeros(2, program.numbers, device=device)
    grads = torch.zeros_like(weights)
    for net, row in zip(nets, weights, strict=True):
        program.pack(net, row)
    program.bind(weights, grads, nets)
    for rows in ROWS:
        few, answers = {n: one[:rows] for n, one in inputs.items()}, labels[:rows]
        expected = []
        for net in nets:
            buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
            expected.append(_alone(net, task, few, answers))
            for name, buffer in net.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    return f"its forward pass changes its buffer {name}, as running statistics do"
        outputs = torch.stack([one for one, _ in expected])
        rates = tuple(layer.p for layer in dropout.layers(nets[0]))
        noise = dropout.draw(program.dropouts(rows), [(1, 1, rates)] * 2, first=0, device=device)
        features = few["features"]
        if program.wants_ones:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        part = Inputs(0, 2, features.expand(2, *features.shape), few.get("categories"))
        step = Step(0, 2, [part], answers.expand(2, rows), torch.empty_like(outputs), noise)
        program.gradients(step)
        if not _close(step.outputs, outputs, _greatest([outputs])):
            return "stacked, it does not give the outputs that it gives alone"
        for row, net, (_, found) in zip(grads, nets, expected, strict=True):
            stacked, scale = copy.deepcopy(net), _greatest([g for g in found if g is not None])
            program.unpack(row, stacked)
            for parameter, gradient in zip(stacked.parameters(), found, strict=True):
                if gradient is not None and not _close(parameter.detach(), gradient, scale):
                    return "stacked, it does not have the gradients that it has alone"
    return None


def _alone(
    net: nn.Module, task: LabelTask, inputs: Batch, labels: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The outputs of a solo step, and the gradient of the mean loss at each parameter."""
    net.zero_grad(set_to_none=True)
    seed_random(labels.device, 1, 1, 0)
    outputs = call(net, [*inputs])(inputs)
    loss = task.loss(outputs, {LABEL: labels})
    (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
    grads = [
        None if not p.requires_grad else torch.zeros_like(p) if p.grad is None else p.grad
        for p in net.parameters()
    ]
    return outputs.detach(), grads


def _greatest(tensors: Sequence[Tensor]) -> float:
    return max((float(one.abs().max()) for one in tensors if one.numel()), default=0.0)


def _close(found: Tensor, expected: Tensor, scale: float) -> bool:
    return torch.allclose(found, expected, rtol=0.0, atol=WITHIN * max(scale, 1e-6))
