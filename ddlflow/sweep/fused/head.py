"""From the outputs of many models to their losses, and the gradient of these at the outputs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.train.tasks.objectives import Objective


class Head:
    """An objective over stacked outputs: [models, rows] or [models, rows, classes].

    Args:
        objective: a built-in one has its gradient by formula; of the user's, autograd takes it
            through ``torch.func.vmap`` of the loss's sum.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.is_built_in = objective.is_built_in
        self._sums: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(objective.loss_sum)

    def gradient(self, outputs: Tensor, labels: Tensor, share: float, out: Tensor) -> Tensor | None:
        """Writes ``share`` times the gradient of each model's loss sum into ``out``.

        Returns:
            [models], the loss sums, where they fall out on the way.
        """
        if not self.is_built_in:
            leaf = outputs.detach().clone().requires_grad_()
            sums = self._sums(leaf, labels)
            (gradient,) = torch.autograd.grad(sums.sum(), leaf)
            torch.mul(gradient, share, out=out)
            return sums.detach().float()
        if self.objective.kind == "binary":
            torch.sigmoid(outputs, out=out)
            out.sub_(labels).mul_(share)
        elif self.objective.kind == "regression":
            torch.sub(outputs, labels, out=out)
            out.mul_(2 * share)
        else:
            # Torch's own two steps, so that what cancels in a solo training cancels here too.
            logs = torch.log_softmax(outputs, -1)
            at_class = torch.zeros_like(logs).scatter_(2, labels.unsqueeze(-1), -share)
            torch.ops.aten._log_softmax_backward_data.out(at_class, logs, -1, logs.dtype, out=out)
        return None

    def sums(self, outputs: Tensor, labels: Tensor, steps: int) -> Tensor:
        """The loss sums of ``steps`` batches that lie side by side: [models, steps]."""
        if not self.is_built_in:
            pairs = zip(outputs.chunk(steps, 1), labels.chunk(steps, 1), strict=True)
            return torch.stack([self._sums(z, y).float() for z, y in pairs], 1)
        return self.row_losses(outputs, labels).view(len(outputs), steps, -1).sum(2)

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A built-in objective's loss of each row: [models, rows]."""
        kind = self.objective.kind
        if kind == "binary":
            return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        if kind == "regression":
            return F.mse_loss(outputs, labels, reduction="none")
        losses = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(labels.shape)
