"""The whole net on every rank, by torch's DistributedDataParallel: one pass a rank.

What ``train.determinism: world`` and ``off`` train with. Buckets of gradients are sent while the
backward pass goes on. The order in which they are added depends on the world, and so do the last
bits; for the same world they are the same, also after a restart.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from ddlflow.models.call import Batch, num_rows
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.replica import clip_whole, counted, divide
from ddlflow.train.precision import LossOf
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.task import Loss

WARM_ROWS = 2  # batch norm needs two


class LossCarrier(nn.Module):
    """A loss as a module whose own parameter gets the loss and its count as its gradient.

    So both travel in the gradients' buckets, and every rank is told the whole batch's without a
    message of its own.
    """

    def __init__(self, net: nn.Module, loss_of: LossOf, device: torch.device) -> None:
        super().__init__()
        self.net = net  # for its parameters; it is called by loss_of
        self.carried = nn.Parameter(torch.zeros(2, device=device))
        self._loss_of = loss_of

    def forward(self, batch: Batch) -> Tensor:
        loss = self._loss_of(batch)
        known = torch.stack(counted(loss, self.carried.device))
        return loss.total + (self.carried * known).sum()


class DdpReplica:
    """A ``Replica`` whose last bits depend on the world.

    Buffers that the forward pass changes are averaged over the ranks that have rows.

    Args:
        net: the model.
        loss_of: its loss.
        layout: whose slices are this rank's.
        group: the process group; None where the world is 1.
        seed: of the random numbers of dropout and the like.
        micro_batch_rows: the most rows in one pass; None: all of the slice.
        seeds_steps: whether each step's random numbers are a function of the step; else they go on
            from where the step before left them, and a restarted training has others.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_of: LossOf,
        layout: RankLayout,
        group: dist.ProcessGroup | None = None,
        *,
        seed: int,
        micro_batch_rows: int | None = None,
        seeds_steps: bool = True,
    ) -> None:
        self._net = net
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._buffers = [b for b in net.buffers() if b.dtype != torch.bool]
        self._module = LossCarrier(net, loss_of, self._device)
        self._rank, self._world, self._group = layout.rank, layout.world, group
        self._seed, self._seeds_steps = seed, seeds_steps
        self._micro_batch_rows = micro_batch_rows
        self._spread: DistributedDataParallel | None = None

    def gradient(self, slices: Sequence[Batch], *, step: int, sharing: int) -> Loss:
        own = slices[0] if len(slices) == 1 else _joined(slices)
        if self._group is not None and self._spread is None:
            self._spread = self._warmed(own)
            seed_random(self._device, self._seed, step, self._rank)
        if self._seeds_steps:
            seed_random(self._device, self._seed, step, self._rank)
        trained = (*self._parameters, self._module.carried)
        for parameter in trained:
            parameter.grad = None
        everywhere = sharing == self._world  # else some rank has no row to go forward with
        if num_rows(own):
            self._backward(own, sends=everywhere)
        if self._group is not None and not everywhere:
            self._add_up([_grad(parameter) for parameter in trained])
        *gradients, carried = [_grad(parameter) for parameter in trained]  # none stays None
        total, count = carried.clone()  # its memory is a bucket's
        divide(gradients, count)
        if self._group is not None and self._buffers:
            self._mean_buffers(num_rows(own), sharing)
        return Loss(total, count)

    def clip(self, max_norm: float) -> None:
        clip_whole(self._net, max_norm)

    def _backward(self, own: Batch, *, sends: bool) -> None:
        """Adds the gradients of this rank's rows, piece by piece; the last one sends them."""
        module = self._spread or self._module
        size = self._micro_batch_rows or num_rows(own)
        cuts = zip(*(torch.split(column, size) for column in own.values()), strict=True)
        pieces = [dict(zip(own, parts, strict=True)) for parts in cuts]
        for number, piece in enumerate(pieces, 1):
            waits: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if self._spread is not None and not (sends and number == len(pieces)):
                waits = self._spread.no_sync()
            with waits:
                module(piece).backward()

    def _warmed(self, own: Batch) -> DistributedDataParallel:
        """The model spread over the ranks, with its buckets in their last order.

        DistributedDataParallel orders its buckets anew after its first backward pass, and an order
        of its own for the first step would give a resumed training other bits. So the first pass is
        over made rows; it changes nothing.
        """
        made = {n: c.new_zeros((WARM_ROWS, *c.shape[1:])) for n, c in own.items()}
        before = [buffer.clone() for buffer in self._buffers]
        self._module(made).backward()
        unused = any(parameter.grad is None for parameter in self._parameters)
        spread = DistributedDataParallel(
            self._module,
            process_group=self._group,
            broadcast_buffers=False,  # they are averaged
            find_unused_parameters=unused,
            gradient_as_bucket_view=True,
        )
        spread.register_comm_hook(self._group, _summed)
        for _ in range(2):  # the second forward pass puts the buckets in order
            spread(made).backward()
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(value)
        return spread

    def _mean_buffers(self, has_rows: int, sharing: int) -> None:
        values = [buffer if has_rows else torch.zeros_like(buffer) for buffer in self._buffers]
        for buffer, value in zip(self._buffers, self._add_up(values), strict=True):
            mean: Any = value / sharing if value.is_floating_point() else value // sharing
            buffer.copy_(mean)

    def _add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the ranks of each tensor; gradients are set to it in place."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            these = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in these])
            dist.all_reduce(flat, group=self._group)
            parts = torch.split(flat, [tensor.numel() for tensor in these])
            for tensor, part in zip(these, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        return list(tensors)


def _summed(
    group: dist.ProcessGroup | None, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Sends a bucket: DistributedDataParallel's own way takes the mean over the ranks."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    sent: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return sent


def _grad(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; zeros where none reached it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _joined(slices: Sequence[Batch]) -> Batch:
    """The rows of all slices; sequences are padded to the longest of all."""
    return {name: _stacked([one[name] for one in slices]) for name in slices[0]}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    wide = [part.new_zeros(len(part), longest, *part.shape[2:]) for part in parts]
    for part, into in zip(parts, wide, strict=True):
        into[:, : part.shape[1]] = part
    return torch.cat(wide)
