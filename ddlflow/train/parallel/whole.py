"""The whole net on every rank, and the same bits whatever the world: ``determinism: elastic``.

Each virtual rank's gradient is computed apart, and all are added along one fixed tree.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddlflow.models.call import Batch, num_rows
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.replica import clip_whole, counted, divide
from ddlflow.train.parallel.tree import Gather, Reduction, Vector
from ddlflow.train.precision import LossOf
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.task import Loss


class WholeReplica:
    """A ``Replica`` whose gradients do not depend on the world.

    The loss and the count of its items travel with the gradient, so every rank sees the same ones.
    So do buffers that the forward pass changes (running statistics of batch norm): each virtual
    rank starts from the step's first values, and the mean over the virtual ranks that have rows is
    what is kept.

    Args:
        net: the model.
        loss_of: its loss.
        layout: which virtual ranks are this rank's.
        group: the process group; None where the world is 1.
        gather: see ``Reduction``.
        seed: of the random numbers of dropout and the like.
        backward: sets the gradients to those of a batch's total loss; None: autograd does.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_of: LossOf,
        layout: RankLayout,
        group: dist.ProcessGroup | None = None,
        *,
        gather: Gather | None = None,
        seed: int,
        backward: Callable[[Batch], Loss] | None = None,
    ) -> None:
        self._net, self._loss_of, self._seed = net, loss_of, seed
        self._backward = backward or self._by_autograd
        self._places = {v: place for place, v in enumerate(layout.mine)}
        self._reduce = Reduction(layout.rank, layout.world, layout.virtual_ranks, group, gather)
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._buffers = [b for b in net.buffers() if b.dtype != torch.bool]

    def gradient(self, slices: Sequence[Batch], *, step: int, sharing: int) -> Loss:
        before = [buffer.clone() for buffer in self._buffers]

        def vector(virtual_rank: int) -> Vector:
            batch = slices[self._places[virtual_rank]]
            if not num_rows(batch):
                return self._zeros()
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            for parameter in self._parameters:
                parameter.grad = None
            seed_random(self._device, self._seed, step, virtual_rank)
            loss = self._backward(batch)
            grads = [
                p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters
            ]
            buffers = [buffer.clone() for buffer in self._buffers]
            return [*grads, *counted(loss, self._device), *buffers]

        summed = self._reduce(vector)
        size = len(self._parameters)
        gradients, (total, count), buffers = (
            summed[:size],
            summed[size : size + 2],
            summed[size + 2 :],
        )
        divide(gradients, count)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        for buffer, value in zip(self._buffers, buffers, strict=True):
            buffer.copy_(value / sharing if value.is_floating_point() else value // sharing)
        # Copies: views would keep the memory of all gradients until the loss is read.
        return Loss(total.clone(), count.clone())

    def _by_autograd(self, batch: Batch) -> Loss:
        loss = self._loss_of(batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        return loss

    def clip(self, max_norm: float) -> None:
        clip_whole(self._net, max_norm)

    def _zeros(self) -> Vector:
        """A virtual rank without rows: it adds nothing."""
        loss = [torch.zeros((), device=self._device) for _ in range(2)]
        like: list[Tensor] = [*self._parameters, *loss, *self._buffers]
        return [torch.zeros_like(tensor) for tensor in like]
