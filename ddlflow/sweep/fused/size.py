"""How many members a stack gets: measured on the device, on made rows, in a fraction of a second.

More members share what a step costs besides arithmetic, until their activations and weights leave
the cache. Where even the best stack is slower than the plain loop, members train apart.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from ddlflow.machine import memory
from ddlflow.sweep.fused import dense, dropout
from ddlflow.sweep.fused.feasible import made_inputs, program_of
from ddlflow.sweep.fused.program import Inputs, Noise, Step, matrix
from ddlflow.sweep.fused.update import Update
from ddlflow.sweep.member import Member, Prepared, first_nets, task_of
from ddlflow.train import precision
from ddlflow.train.affine_backward import affine_backward
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.parallel.layout import ALONE
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.tasks.target import LABEL

MOST = 1024
ENOUGH = 1.03  # of sizes that are so near the best the largest is taken: it reads rows less often
TRIAL_S = 0.004  # a size's steps are timed for so long, three times; the fastest counts
GROWTH = 4  # from one size to the next
MOST_ROWS = 2048  # of a timed batch
MATRICES = 6  # weights, gradients, up to two of the optimizer's state, scratch and one to spare


@dataclass(frozen=True, slots=True)
class StackSize:
    """What was measured.

    Attributes:
        size: members of a stack; 0: trained apart, by the plain loop.
        fused_s: seconds of a member's step in the best stack, with ``MOST_ROWS`` rows at most.
        solo_s: in the plain loop; infinite where that was not asked.
    """

    size: int
    fused_s: float
    solo_s: float


def choose(members: Sequence[Member], prepared: Prepared, *, always: bool = False) -> StackSize:
    """The size of stack that a member's step is fastest in.

    Args:
        members: that may share a stack, those of one fold and seed side by side.
        prepared: the data set; its rows are not read.
        always: do not compare with the plain loop.
    """
    seconds: dict[int, float] = {}
    size, misses = 1, 0
    while size <= min(len(members), MOST) and misses < 2 and _fits(size, members, prepared):
        seconds[size] = _timed(_stack_step(members[:size], prepared), prepared.device) / size
        misses = misses + 1 if seconds[size] > min(seconds.values()) * ENOUGH else 0
        size = size * GROWTH if size == len(members) else min(size * GROWTH, len(members))
    best_s = min(seconds.values())
    best = max(size for size, own in seconds.items() if own <= best_s * ENOUGH)
    if always or not _solo_matters(members[0], prepared):
        return StackSize(best, best_s, math.inf)
    solo_s = _timed(_solo_step(members[0], prepared), prepared.device)
    return StackSize(best if best_s <= solo_s else 0, best_s, solo_s)


def _solo_matters(member: Member, prepared: Prepared) -> bool:
    """Whether the plain loop may be faster than a stack, be it of one.

    Never for the models that are computed by hand: their forward and backward pass is the same
    arithmetic without autograd's memory, in blocks that fit the cache (benchmarks/sweep_core.py
    --table). The measurement would import torch's optimizers, a second where it is the first.
    """
    return not dense.takes(first_nets([member], prepared)[0])


def _fits(size: int, members: Sequence[Member], prepared: Prepared) -> bool:
    """Whether a stack's numbers take less than a quarter of the free memory."""
    if size == 1:
        return True
    net = first_nets(members[:1], prepared)[0]
    numbers = sum(parameter.numel() for parameter in net.parameters())
    widest = max((parameter.shape[0] for parameter in net.parameters()), default=1)
    depth = 3 * sum(1 for parameter in net.parameters() if parameter.dim() > 1)
    activations = members[0].train.batch_rows * widest * depth
    if prepared.device.type == "cuda":
        free = torch.cuda.mem_get_info(prepared.device)[0]
    else:
        free = memory().free
    return size * (MATRICES * numbers + activations) * 4 < free / 4


def _timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step, the least of three trials."""

    # The processor's time of this thread, where it does the work: neighbours do not count.
    clock = time.perf_counter if device.type == "cuda" else time.thread_time

    def trial(steps: int) -> float:
        began = clock()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - began) / steps

    trial(1)
    one = trial(1)
    if one >= TRIAL_S:
        return one
    return min(trial(int(TRIAL_S / one)) for _ in range(3))


def _rows(member: Member, prepared: Prepared) -> int:
    """Rows of a timed batch. On a CPU time grows evenly from some hundred rows on."""
    rows = member.train.batch_rows
    return rows if prepared.device.type == "cuda" else min(rows, MOST_ROWS)


def _made(prepared: Prepared, member: Member) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of made rows: inputs and labels."""
    manifest = prepared.manifest
    rows = _rows(member, prepared)
    sizes = [category.size for category in manifest.categories]
    inputs = made_inputs(rows, len(manifest.feature_names), sizes, prepared.device)
    return inputs, task_of(member, prepared).example(rows, prepared.device)[LABEL]


def _stack_step(members: Sequence[Member], prepared: Prepared) -> Callable[[], None]:
    device, rows = prepared.device, _rows(members[0], prepared)
    task = task_of(members[0], prepared)
    nets = first_nets(members, prepared)
    made, labels = _made(prepared, members[0])
    program = program_of(nets[0], task, {n: x[:1] for n, x in made.items()}, device)
    features = made["features"]
    if program.wants_ones:
        features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    weights = matrix(len(members), program.numbers, device)
    grads = torch.zeros_like(weights)
    with torch.no_grad():
        for net, row in zip(nets, weights, strict=True):
            program.pack(net, row)
    program.bind(weights, grads, nets)
    specs = [member.train for member in members]
    update = Update(specs, [1000] * len(specs), weights, grads, program.penalised)
    inputs, at = [], 0
    for _, group in groupby(members, lambda member: (member.fold, member.train.seed)):
        size = len(list(group))
        own = features.clone().expand(size, *features.shape)
        inputs.append(Inputs(at, at + size, own, made.get("categories")))
        at += size
    outputs_of = task.num_outputs or 1
    shape = [len(members), rows, *([outputs_of] if outputs_of > 1 else [])]
    outputs = torch.empty(shape, device=device)
    step = Step(0, len(members), inputs, labels.expand(len(members), rows), outputs)
    advance = update.of(0, len(members))
    rates = [tuple(layer.p for layer in dropout.layers(net)) for net in nets]

    def run() -> None:
        step.noise = _noise(specs, rates, program.dropouts(rows), device)
        program.gradients(step)
        advance()

    return run


def _noise(
    specs: Sequence[object],
    rates: list[tuple[float, ...]],
    calls: list[tuple[int, tuple[int, ...]]],
    device: torch.device,
) -> list[Noise]:
    if not any(any(own) for own in rates):
        return []
    return dropout.draw(calls, [(1, 1, own) for own in rates], first=0, device=device)


def _solo_step(member: Member, prepared: Prepared) -> Callable[[], None]:
    device, spec = prepared.device, member.train
    net: nn.Module = first_nets([member], prepared)[0].train()
    optimizer = make_optimizer(spec.optimizer, net.parameters(), device=device)
    task = task_of(member, prepared)
    inputs, labels = _made(prepared, member)
    loss_of = precision.loss_of(net, task, spec.precision, device.type, inputs=[*inputs])
    backward = affine_backward(net, task, spec.precision, device.type)
    replica = WholeReplica(net, loss_of, ALONE, seed=spec.seed, backward=backward)
    batch = {**inputs, "label": labels}

    def run() -> None:
        replica.gradient([batch], step=1, sharing=1)
        optimizer.step()

    return run
