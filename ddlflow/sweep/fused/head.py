"""From the outputs of many models to their losses, and the gradient of these at the outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddlflow.train.tasks.table import LabelTask


class Head:
    """A task's loss over stacked outputs: [models, rows] or [models, rows, classes].

    Args:
        task: a built-in loss has its gradient by formula; of the user's, autograd takes it
            through ``torch.func.vmap`` of the loss's sum.
    """

    def __init__(self, task: LabelTask) -> None:
        self.task = task
        self.is_built_in = task.criterion.is_built_in
        self._sums: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(task.criterion.sum)

    def gradient(self, outputs: Tensor, labels: Tensor, share: float, out: Tensor) -> Tensor | None:
        """Writes ``share`` times the gradient of each model's loss sum into ``out``.

        Returns:
            [models], the loss sums, where they fall out on the way.
        """
        if self.is_built_in:
            self.task.output_gradient(outputs, labels, share, out)
            return None
        leaf = outputs.detach().clone().requires_grad_()
        sums = self._sums(leaf, labels)
        (gradient,) = torch.autograd.grad(sums.sum(), leaf)
        torch.mul(gradient, share, out=out)
        return sums.detach().float()

    def sums(self, outputs: Tensor, labels: Tensor, steps: int) -> Tensor:
        """The loss sums of ``steps`` batches that lie side by side: [models, steps]."""
        if not self.is_built_in:
            pairs = zip(outputs.chunk(steps, 1), labels.chunk(steps, 1), strict=True)
            return torch.stack([self._sums(z, y).float() for z, y in pairs], 1)
        return self.task.stacked_losses(outputs, labels).view(len(outputs), steps, -1).sum(2)
