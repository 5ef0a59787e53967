"""The gradient of one global batch: each virtual rank's apart, then the fixed-order sum."""

from collections.abc import Sequence

import torch
from torch import nn

from ddlflow.models.call import Batch, num_rows
from ddlflow.train.parallel.reduction import Reduction, Vector
from ddlflow.train.precision import LossOf

_MASK = (1 << 64) - 1


class Gradients:
    """Computes the mean gradient over the rows of a global batch into ``parameter.grad``.

    The loss travels with the gradient, so every rank sees the same one. So do buffers that the
    forward pass changes (running statistics of batch norm): each virtual rank starts from the
    step's first values, and the mean over the virtual ranks that have rows is what is kept.

    Args:
        net: the model.
        loss_of: its loss as a sum over rows.
        reduction: over all virtual ranks.
        mine: the virtual ranks of this rank.
        seed: of the random numbers of dropout and the like.
    """

    def __init__(
        self, net: nn.Module, loss_of: LossOf, reduction: Reduction, *, mine: range, seed: int
    ) -> None:
        self._loss_of = loss_of
        self._reduce = reduction
        self._mine = mine
        self._seed = seed
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._buffers = [b for b in net.buffers() if b.dtype != torch.bool]
        self._shares: dict[int, torch.Tensor] = {}  # 1/rows, by rows

    def __call__(
        self, slices: Sequence[Batch], *, step: int, rows: int, parts: int
    ) -> torch.Tensor:
        """Sets every parameter's gradient; returns the loss's sum over the global batch's rows.

        Args:
            slices: this rank's, one for each of its virtual ranks.
            step: of the whole training; it seeds the random numbers.
            rows: of the global batch, over all ranks.
            parts: virtual ranks that have at least one of these rows.
        """
        share = self._shares.get(rows)
        if share is None:
            share = self._shares[rows] = torch.tensor(1.0 / rows, device=self._device)
        before = [buffer.clone() for buffer in self._buffers]

        def vector(virtual_rank: int) -> Vector:
            batch = slices[self._mine.index(virtual_rank)]
            if not num_rows(batch):
                return self._zeros()
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            for parameter in self._parameters:
                parameter.grad = None
            seed_random(self._device, self._seed, step, virtual_rank)
            loss = self._loss_of(batch).total
            loss.backward(share)  # type: ignore[no-untyped-call]
            grads = [
                p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters
            ]
            # One dtype on every rank, whatever a user's loss computes in: it is gathered.
            told = loss.detach().float()
            return [*grads, told, *(buffer.clone() for buffer in self._buffers)]

        total = self._reduce(vector)
        for parameter, gradient in zip(self._parameters, total, strict=False):
            parameter.grad = gradient
        loss_at = len(self._parameters)
        for buffer, value in zip(self._buffers, total[loss_at + 1 :], strict=True):
            buffer.copy_(value / parts if value.is_floating_point() else value // parts)
        return total[loss_at]

    def _zeros(self) -> Vector:
        """A virtual rank without rows: it adds nothing."""
        like = [*self._parameters, torch.zeros((), device=self._device), *self._buffers]
        return [torch.zeros_like(tensor) for tensor in like]


def seed_random(device: torch.device, seed: int, step: int, virtual_rank: int) -> None:
    """Seeds torch's generator of the device by (seed, step, virtual rank) alone.

    Source: the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators") makes neighbouring keys unlike.
    """
    key = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + virtual_rank + 1) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    key ^= key >> 31
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    else:
        torch.default_generator.manual_seed(key)
