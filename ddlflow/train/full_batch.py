"""L-BFGS over all rows: each step takes every row, in float64, until the gradient is nothing.

An epoch is one step. The rows are read in fixed pieces, and the pieces' sums added up in a fixed
number of slices, which are dealt to the ranks in turn: so the bits do not depend on the world, and
no more than a piece is in memory. What is trained is a float64 copy of the net; the net itself has
its weights in float32 after each step.

Source: Nocedal, "Updating quasi-Newton matrices with limited storage" (1980), as torch has it with
a line search for the strong Wolfe conditions.
"""

import copy
import math
import time
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from ddlflow.data.shards.batches import Chunk
from ddlflow.data.shards.batches import mark as mark_of
from ddlflow.data.shards.rows import Rows
from ddlflow.errors import TrainingError
from ddlflow.spec.pipeline import AnyOptimizer, Lbfgs, Penalty, Training
from ddlflow.train.events import EpochEnded, Noted
from ddlflow.train.loop import Stopped, Surroundings, end_epoch, mark_digest, progress, save
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.penalty import penalised
from ddlflow.train.precision import LossOf
from ddlflow.train.saved.state import State

PIECE_ROWS = 8_192
SLICES = 64  # the most; what ranks share, and what their sums take of memory
HEAD = 2  # of a sum: the loss and how many items it is of; the gradient follows
SEARCHED = 30  # passes of a line search, the most; nearly all take one
# torch ends a step where slope or bracket are below a tolerance, and learns no curvature from steps
# whose gradients differ by some 1e-10: far from 64 bits' end. A power of two on the loss moves both
# out of the way, and changes no bit else.
FLAT, SCALE = 1e-24, 2.0**40


class FullBatchOptimizer(torch.optim.LBFGS):
    """torch's L-BFGS over a float64 copy of a net, one step a call.

    Attributes:
        exact: the copy.
    """

    def __init__(self, net: nn.Module, spec: Lbfgs) -> None:
        self.exact = copy.deepcopy(net).double()
        super().__init__(
            [p for p in self.exact.parameters() if p.requires_grad],
            lr=1.0,
            max_iter=1,
            max_eval=SEARCHED,
            history_size=spec.history,
            tolerance_grad=0.0,
            tolerance_change=FLAT,
            line_search_fn="strong_wolfe",
        )

    def round_into(self, net: nn.Module) -> bool:
        """Gives a float32 net the weights; whether they are all finite."""
        net.load_state_dict(self.exact.state_dict())
        return all(bool(weight.isfinite().all()) for weight in net.parameters())

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "exact": self.exact.state_dict()}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.exact.load_state_dict(state_dict["exact"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "exact"})


def optimizer_of(
    spec: AnyOptimizer, net: nn.Module, *, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that a pipeline names, for a net that is on the device."""
    if isinstance(spec, Lbfgs):
        return FullBatchOptimizer(net, spec)
    return make_optimizer(spec, net.parameters(), device=device)


class FullBatch:
    """The mean loss of all rows with its penalty, and its gradient: what torch calls a closure.

    Args:
        rows: standardised as they are read; labels as the net learns them.
        net: in float64.
        loss_of: of that net.
        penalty: its l2.
        rank: this rank.
        world: how many share the rows.
        group: the process group; None where the world is 1.

    Attributes:
        loss: the mean loss at the last weights, without the penalty.
        count: of the items that it is the mean of.
        rows_here: the rows of this rank.
        mark_here: their mark (``data.batches.mark``).
        at: when the last piece was read, monotonic.
    """

    def __init__(
        self,
        rows: Rows,
        net: nn.Module,
        loss_of: LossOf,
        penalty: Penalty,
        *,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._rows, self._loss_of, self._penalty = rows, loss_of, penalty
        self._world, self._group = world, group
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._penalised = penalised(net)
        self._known: Tensor | None = None  # the weights that loss and gradient are of
        self._value = torch.zeros((), dtype=torch.float64)
        self._step = step = rows.piece_rows(PIECE_ROWS)
        self._buffer = rows.empty(min(step, rows.rows))
        pieces = -(-rows.rows // step)
        ends = np.linspace(0, pieces, min(SLICES, pieces) + 1).round().astype(int)
        starts = [
            range(first * step, min(last * step, rows.rows), step)
            for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]
        self._num_slices = len(starts)
        self._own = {k: s for k, s in enumerate(starts) if k % world == rank}
        self.loss, self.count = math.nan, 0
        self.at = time.monotonic()
        self.rows_here, self.mark_here = self._counted()

    def __call__(self) -> Tensor:
        """The value times ``SCALE`` at the weights as they are; ``.grad`` is its gradient."""
        flat = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        if self._known is not None and torch.equal(flat, self._known):
            return self._value  # a line search ends where it looked last
        sums = torch.zeros(
            self._num_slices, HEAD + flat.numel(), dtype=torch.float64, device=flat.device
        )
        for number, starts in self._own.items():
            for start in starts:
                self._add_piece(start, sums[number])
        if self._world > 1:
            dist.all_reduce(sums, group=self._group)  # each slice is 0 on all ranks but one
        total = sums.sum(0)
        mean = total / total[1]
        self._spread(mean[HEAD:])
        penalty = torch.zeros_like(mean[0])
        for weight in self._penalised if self._penalty.l2 else ():
            penalty += self._penalty.l2 * weight.detach().square().sum()
            assert weight.grad is not None
            weight.grad.add_(weight.detach(), alpha=2 * self._penalty.l2)
        self._known, self._value = flat, (mean[0] + penalty) * SCALE
        self.loss, self.count = float(mean[0]), round(float(total[1]))
        for parameter in self._parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(SCALE)
        return self._value

    @property
    def steepest(self) -> float:
        """The greatest slope of the value along a weight, where it was computed last."""
        grads = (p.grad for p in self._parameters)
        return max(float(g.abs().max()) for g in grads if g is not None and g.numel()) / SCALE

    def _add_piece(self, start: int, into: Tensor) -> None:
        """Adds the loss, its items and the gradient of a piece of rows."""
        stop = min(start + self._step, self._rows.rows)
        ready = self._rows.batch(start, stop, self._buffer)
        self.at = time.monotonic()
        columns = {name: torch.from_numpy(array).to(into.device) for name, array in ready.items()}
        for name in self._rows.inputs:
            if columns[name].is_floating_point():
                columns[name] = columns[name].double()
        loss = self._loss_of(columns)
        grads = torch.autograd.grad(loss.total, self._parameters, allow_unused=True)
        into[0] += loss.total.detach()
        into[1] += loss.count
        at = HEAD
        for parameter, grad in zip(self._parameters, grads, strict=True):
            if grad is not None:
                into[at : at + parameter.numel()] += grad.reshape(-1)
            at += parameter.numel()

    def _spread(self, flat: Tensor) -> None:
        at = 0
        for parameter in self._parameters:
            parameter.grad = flat[at : at + parameter.numel()].view_as(parameter).clone()
            at += parameter.numel()

    def _counted(self) -> tuple[int, int]:
        rows = total = 0
        for start in (start for starts in self._own.values() for start in starts):
            stop = min(start + self._step, self._rows.rows)
            ids = np.empty(stop - start, np.int64)
            self._rows.read(start, stop, {"row": ids}, 0)
            rows, total = rows + len(ids), total + int(mark_of(ids.reshape(1, -1))[0])
        return rows, total % 2**64


def step(optimizer: FullBatchOptimizer, batch: FullBatch, net: nn.Module, spec: Lbfgs) -> bool:
    """One step; the net gets the new weights.

    Returns:
        Whether it was the last one: the gradient is as small as was asked for, or numbers of 64
        bits get no closer.

    Raises:
        TrainingError: the loss or a weight is no number.
    """
    before = [p.detach().clone() for p in optimizer.exact.parameters()]
    # torch has no words for a closure without ``backward``, and none for its own result.
    optimizer.step(cast(Any, batch))  # type: ignore[no-untyped-call]
    batch()
    if not optimizer.round_into(net) or not math.isfinite(batch.loss):
        raise TrainingError(
            f"The loss is {batch.loss} in a step over all rows. Look at the features' extremes in "
            "manifest.json, or set train.penalty.l2."
        )
    after = optimizer.exact.parameters()
    stands = all(torch.equal(a, b.detach()) for a, b in zip(before, after, strict=True))
    return stands or batch.steepest <= spec.tolerance


def descend(state: State, spec: Training, around: Surroundings, batch: FullBatch) -> None:
    """Trains from where ``state`` stands to the optimum, or to the end of the last epoch.

    Raises:
        TrainingError: as ``step``; or the ranks are not alike any more.
        Stopped: it was asked to stop; the checkpoint is written.
    """
    optimizer = state.optimizer
    assert isinstance(optimizer, FullBatchOptimizer)
    assert isinstance(spec.optimizer, Lbfgs)
    clock = time.monotonic
    saved = clock()
    began = saved - state.seconds
    while not state.ended:
        epoch_began = clock()
        around.ledger.begin(_chunk(state.epoch, around.rows, batch), 1)
        around.ledger.count()
        is_last = step(optimizer, batch, state.net, spec.optimizer)
        state.step, state.steps = 1, state.steps + 1
        state.loss_count = batch.count
        state.loss_sum = batch.loss * around.task.loss_unit * batch.count
        around.pulse.at, around.pulse.step = batch.at, state.steps
        rows_per_s = around.rows / max(clock() - epoch_began, 1e-9)
        around.pulse.resting = True  # no step is done for as long as this takes
        state.net.eval()
        metrics = around.validate()
        state.seconds = clock() - began
        around.tell(progress(state, around.rows, spec))
        mark_digest(state, around)
        around.pulse.at, around.pulse.resting = clock(), False
        end_epoch(state, spec, around.task, metrics, rows_per_s)
        state.ended = state.ended or is_last
        around.tell(EpochEnded(state.history[-1]))
        stopping = around.must_stop() and not state.ended
        if stopping or state.ended or clock() - saved >= spec.checkpoint_every_s:
            saved = clock()
            save(state, around)
        if stopping:
            raise Stopped
        if state.ended and not is_last:
            text = (
                f"The {spec.epochs} steps of train.epochs ended before the optimum: the greatest "
                f"slope is {batch.steepest:.2g}, train.optimizer.tolerance "
                f"{spec.optimizer.tolerance:g}."
            )
            around.tell(Noted(text))


def _chunk(epoch: int, rows: int, batch: FullBatch) -> Chunk:
    """What the ledger writes of a step: this rank's rows, and their mark."""
    own = {"features": torch.empty(batch.rows_here, 0)}
    marks = np.array([batch.mark_here], dtype=np.uint64)
    return Chunk(epoch, 0, rows, [own], marks, ends_epoch=True)
