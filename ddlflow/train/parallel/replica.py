"""What the loop asks of a way of being parallel: a ``Replica``.

`ddlflow.train.parallel.whole` keeps the bits whatever the world, `ddlflow.train.parallel.ddp` is
torch's DistributedDataParallel. ``train.determinism`` is what is promised; these are how it is
kept.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ddlflow.models.call import Batch
from ddlflow.train.tasks.task import Loss


class Replica(Protocol):
    """One rank's copy of the net, which computes its share of each global batch's gradient."""

    def gradient(self, slices: Sequence[Batch], *, step: int, sharing: int) -> Loss:
        """Sets every parameter's gradient to that of the global batch, divided by its items.

        Args:
            slices: this rank's, one for each of its virtual ranks.
            step: of the whole training; it seeds the random numbers.
            sharing: of those whose gradients are added up, how many have a row of the batch.

        Returns:
            The loss of the global batch, the same on every rank: tensors that stay as they are,
            for who reads them steps later.
        """
        ...

    def clip(self, max_norm: float) -> None:
        """Scales the gradient down where its norm over all parameters is greater."""
        ...


def clip_whole(net: nn.Module, max_norm: float) -> None:
    """``Replica.clip`` where every rank has the whole gradient."""
    torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)


def counted(loss: Loss, device: torch.device) -> tuple[Tensor, Tensor]:
    """Total and count of a loss as float32 scalars, which are sent with the gradient.

    One dtype on every rank, whatever a user's loss computes in. A count is exact up to 16.7 M items
    a global batch; beyond, it is rounded as the gradient is.
    """
    count = loss.count
    if not isinstance(count, Tensor):  # filled, not copied: a device is not waited for
        return loss.total.detach().float(), torch.full((), float(count), device=device)
    return loss.total.detach().float(), count.detach().float()


def divide(gradients: list[Tensor], count: Tensor) -> None:
    """The sum over the items of a global batch divided once by their number, in place."""
    torch._foreach_div_(gradients, count)


def read(losses: Sequence[Loss]) -> list[tuple[float, int]]:
    """Totals and counts of the losses of some steps; this waits for the device."""
    numbers = [torch.as_tensor(part) for loss in losses for part in (loss.total, loss.count)]
    pairs = torch.stack([number.float() for number in numbers]).view(-1, 2).tolist()
    return [(total, round(count)) for total, count in pairs]
