"""Loss and gradient of affine maps with relu between them, by hand and in blocks of rows.

Autograd writes what it needs to fresh memory, ten times the width of the widest layer a row. Here a
block of rows goes forward and back while its activations are in the cache, in memory that is kept.
Measured on one core with mlp [100] on 28 features: 1.5 times as fast as autograd at 14,000 rows,
1.2 times at 1,400.

The gradient of one hidden layer before one output is an outer product where a unit is on: the
rows are multiplied by the output's gradient, which is narrower, and the weights by what comes out,
which is shorter. ``ddlflow.sweep.fused.dense_pass`` does the same for many models at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddlflow.models.call import Batch, num_rows
from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.train.tasks.table import LabelTask
from ddlflow.train.tasks.target import LABEL
from ddlflow.train.tasks.task import Loss, Task
from ddlflow.train.tasks.weights import ALL_ALIKE

# Numbers of the widest layer in a block, for each thread: 1.6 MB of float32.
# Source: measured with widths of 32 to 512 and 1 MiB of L2; half of it was up to a tenth slower.
BLOCK_NUMBERS = 409_600
LEAST_ROWS = 256  # of a block: of wide layers the products weigh more than the cache
Maps = list[tuple[Tensor, Tensor]]


def maps_of(net: Linear | Mlp) -> Maps:
    """(weight, bias) of each affine map, from below."""
    if isinstance(net, Linear):
        return [(net.weight, net.bias)]
    return [(part.weight, part.bias) for part in net.layers if isinstance(part, nn.Linear)]


def _is_plain(net: Linear | Mlp) -> bool:
    """Whether a net is affine maps with relu between them alone."""
    if len(net.embeddings.tables):
        return False
    if isinstance(net, Linear):
        return net.only is None and net.one_hot is None
    return all(isinstance(part, nn.Linear | nn.ReLU) for part in net.layers)


def affine_backward(
    net: nn.Module, task: Task, precision: str, device: str
) -> "AffineBackward | None":
    """The loss's backward pass by hand; None where autograd has to take it."""
    is_known = isinstance(task, LabelTask) and task.criterion.is_built_in
    if device != "cpu" or precision != "float32" or not is_known or type(net) not in (Linear, Mlp):
        return None
    assert isinstance(task, LabelTask)
    assert isinstance(net, Linear | Mlp)
    is_trained = all(p.requires_grad for p in net.parameters())
    if not _is_plain(net) or not is_trained or task.label.weighting != ALL_ALIKE:
        return None
    return AffineBackward(maps_of(net), task)


@dataclass(slots=True)
class AffineBackward:
    """Sets the gradient of every parameter to that of a batch's total loss.

    Attributes:
        maps: weight [outputs, inputs] and bias [outputs] of each.
        task: with a built-in loss.
    """

    maps: Maps
    task: LabelTask
    _memory: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Loss:
        features, labels = batch["features"], batch[LABEL]
        rows = num_rows(batch)
        grads = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in self.maps]
        hidden = [weight.shape[0] for weight, _ in self.maps[:-1]]
        is_short = len(hidden) == 1 and len(self.maps[-1][1]) == 1
        total = torch.zeros(())
        for start, stop in self._blocks(rows, max([*hidden, 1])):
            x, y = features[start:stop], labels[start:stop]
            acts = self._forward(x, hidden)
            outputs = acts.pop()
            total += self.task.criterion.sum(outputs, y)
            # The formulas are of stacked models: this is a stack of one.
            z_grad = self._kept("z_grad", outputs.shape)
            self.task.output_gradient(outputs[None], y[None], 1.0, z_grad[None])
            if is_short:
                self._short(x, acts[0], z_grad, grads)
            else:
                self._back(x, acts, z_grad.view(len(x), -1), grads)
        if is_short:
            for grad in grads[0]:
                grad.mul_(self.maps[1][0].view(-1, *[1] * (grad.dim() - 1)))
        for (weight, bias), (weight_grad, bias_grad) in zip(self.maps, grads, strict=True):
            weight.grad, bias.grad = weight_grad, bias_grad
        return Loss(total, rows)

    def _forward(self, x: Tensor, hidden: Sequence[int]) -> list[Tensor]:
        """The activations of the hidden layers, and the outputs [n] or [n, outputs]."""
        acts, last = [], x
        for k, width in enumerate(hidden):
            weight, bias = self.maps[k]
            out = self._kept(f"act {k}", (len(x), width))
            torch.addmm(bias, last, weight.t(), out=out).clamp_(min=0)
            acts.append(out)
            last = out
        weight, bias = self.maps[-1]
        if len(bias) == 1:
            outputs = torch.mv(last, weight[0], out=self._kept("outputs", (len(x),)))
            return [*acts, outputs.add_(bias)]
        outputs = self._kept("outputs", (len(x), len(bias)))
        return [*acts, torch.addmm(bias, last, weight.t(), out=outputs)]

    def _short(
        self, x: Tensor, act: Tensor, z_grad: Tensor, grads: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Adds a block to the gradients; those of the first map lack the last one's weights."""
        (first, first_bias), (last, last_bias) = grads
        last[0].addmv_(act.t(), z_grad)
        last_bias.add_(z_grad.sum())
        on = act.gt_(0)  # 1 where a unit is on
        pulled = torch.mul(x, z_grad.unsqueeze(1), out=self._kept("pulled", x.shape))
        first.addmm_(on.t(), pulled)
        first_bias.addmv_(on.t(), z_grad)

    def _back(
        self, x: Tensor, acts: list[Tensor], delta: Tensor, grads: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Adds a block to the gradients, from the last map to the first."""
        for k in range(len(self.maps) - 1, -1, -1):
            below = acts[k - 1] if k else x
            grads[k][0].addmm_(delta.t(), below)
            grads[k][1].add_(delta.sum(0))
            if k:
                out = self._kept(f"delta {k - 1}", below.shape)
                torch.mm(delta, self.maps[k][0], out=out)
                delta = torch.ops.aten.threshold_backward.grad_input(out, below, 0, grad_input=out)

    def _kept(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory of a block's rows; fresh memory costs a page fault each 4 KiB."""
        known = self._memory.get(name)
        if known is None or len(known) < shape[0] or known.shape[1:] != tuple(shape[1:]):
            known = self._memory[name] = torch.empty(tuple(shape))
        return known[: shape[0]]

    @staticmethod
    def _blocks(rows: int, widest: int) -> Iterator[tuple[int, int]]:
        """Even blocks, whose number depends on rows, widths and threads alone: so do the bits."""
        limit = max(LEAST_ROWS, BLOCK_NUMBERS // widest) * torch.get_num_threads()
        count = -(-rows // limit)
        for k in range(count):
            yield rows * k // count, rows * (k + 1) // count
