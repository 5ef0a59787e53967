"""One block of rows through some models of a stack: forward, and back as far as the gradient.

Measured on one core (mlp [100] of 28 features, batch 128, a model's share of 20): forward 12 us, 11
of them in products; backward 15 us, 12 in products; the update by Adam 2 us.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddlflow.sweep.fused.dense_layout import DenseLayout
from ddlflow.sweep.fused.head import Head
from ddlflow.sweep.fused.program import Noise, Step, row_of

aten = torch.ops.aten


class DensePass:
    """Weights and gradients of neighbouring models as views, with memory for so many rows.

    Args:
        layout: of each model's numbers.
        head: their loss.
        weights: [models, numbers] of the whole stack.
        grads: likewise.
        edges: the first model of each run that shares its rows, and the last one's end.
        rows: of the block.
    """

    def __init__(
        self,
        layout: DenseLayout,
        head: Head,
        weights: Tensor,
        grads: Tensor,
        *,
        edges: Sequence[int],
        rows: int,
    ) -> None:
        self.layout, self.head = layout, head
        self.first, last = edges[0], edges[-1]
        models = last - self.first
        weights, grads = weights[self.first : last], grads[self.first : last]
        device = weights.device
        self.runs = [slice(a - self.first, b - self.first) for a, b in pairwise(edges)]
        # The first map has its bias in the block; the others apart.
        bottom, *others = layout.affines
        self.w0, self.g0 = bottom.block(weights), bottom.block(grads)
        self.w = [affine.block(weights)[:, : affine.inputs] for affine in others]
        self.g = [affine.block(grads)[:, : affine.inputs] for affine in others]
        self.bias = [affine.block(weights)[:, affine.inputs :] for affine in others]
        self.bias_g = [affine.block(grads)[:, affine.inputs] for affine in others]
        self.wt = [w.transpose(1, 2) for w in self.w]
        self.gt = [g.transpose(1, 2) for g in self.g]
        if others and others[-1].outputs == 1:
            # As a row of its own: of a transposed column torch's bmm makes a slow product.
            at, stop = others[-1].at, others[-1].at + others[-1].inputs
            self.wt[-1], self.gt[-1] = (m[:, at:stop].unsqueeze(1) for m in (weights, grads))
        self.tables = [row_of(weights, at, shape) for at, shape in layout.tables]
        self.table_g = [row_of(grads, at, shape) for at, shape in layout.tables]
        # Products are made here and copied to the gradients: torch's bmm is 10 to 70 % slower into
        # a part of a row (measured).
        self.made0 = torch.empty(self.g0.shape, device=device)
        self.made = [torch.empty(g.shape, device=device) for g in self.g]
        last_g = self.gt[-1] if others else self.g0
        self.made_row = torch.empty(last_g.shape, device=device)  # of one output
        if layout.one_hot is not None:
            self.one_hot, self.one_hot_g = (row_of(m, *layout.one_hot) for m in (weights, grads))

        def memory(*shape: int) -> Tensor:
            return torch.empty(models, rows, *shape, device=device)

        widths = [affine.outputs for affine in layout.affines[:-1]]
        last_width = layout.affines[-1].outputs
        self.act = [memory(width) for width in widths]
        self.act_t = [act.transpose(1, 2) for act in self.act]
        # One hidden layer of relu and one output, as the default model: see ``_short``.
        self.is_short = layout.activation == "relu" and len(widths) == 1 and last_width == 1
        self.is_short = self.is_short and not layout.tables
        if self.is_short:
            self.pulled = memory(bottom.inputs + 1)
        self.delta = [] if self.is_short else [memory(width) for width in widths]
        self.aside = [memory(width) for width in widths] if layout.activation != "relu" else []
        self.z_grad = memory(*([last_width] if last_width > 1 else []))
        self.z_row, self.z_column = self.z_grad.unsqueeze(1), self.z_grad.unsqueeze(2)
        self.x = memory(bottom.inputs + 1) if layout.tables else None

    def gradients(self, step: Step, share: float, *, add: bool) -> Tensor | None:
        """Forward and backward; ``add``: to the gradients that are there."""
        self.forward(step, step.noise)
        losses = self.head.gradient(step.outputs, step.labels, share, self.z_grad)
        self._backward(step, 1 if add else 0)
        return losses

    def forward(self, step: Step, noise: Sequence[Noise]) -> None:
        """The outputs, into ``step.outputs``."""
        inputs = self._inputs(step)
        if self.act:
            for run, x in zip(self.runs, inputs, strict=True):
                torch.bmm(x, self.w0[run], out=self.act[0][run])
            self._activate(0, noise)
            for k in range(1, len(self.act)):
                below = self.act[k - 1]
                torch.baddbmm(self.bias[k - 1], below, self.w[k - 1], out=self.act[k])
                self._activate(k, noise)
            self._last(step.outputs)
        else:
            for run, x in zip(self.runs, inputs, strict=True):
                _product(x, self.w0[run], step.outputs[run])
        if self.layout.one_hot is not None:
            self._add_one_hot(step)

    def _inputs(self, step: Step) -> list[Tensor]:
        """The first map's inputs [models, rows, inputs + 1], for each run."""
        if self.x is None:
            return [part.features for part in step.inputs]
        for run, part in zip(self.runs, step.inputs, strict=True):
            at = part.features.shape[2]
            self.x[run, :, :at] = part.features
            assert part.categories is not None
            for column, table in enumerate(self.tables):
                found = table[run].index_select(1, part.categories[:, column])
                self.x[run, :, at : at + found.shape[2]] = found
                at += found.shape[2]
        return [self.x[run] for run in self.runs]

    def _activate(self, k: int, noise: Sequence[Noise]) -> None:
        """In place; what the way back needs of it besides is put aside."""
        act, kind = self.act[k], self.layout.activation
        if kind == "relu":
            act.relu_()
        elif kind == "gelu":
            self.aside[k].copy_(act)
            aten.gelu.out(self.aside[k], out=act)
        else:
            act.tanh_() if kind == "tanh" else act.sigmoid_()
            if noise:
                self.aside[k].copy_(act)
        _dampen(act, k, noise, self.first)

    def _last(self, outputs: Tensor) -> None:
        if outputs.dim() == 2:
            torch.bmm(self.wt[-1], self.act_t[-1], out=outputs.unsqueeze(1))
            outputs.add_(self.bias[-1][:, 0])
        else:
            torch.baddbmm(self.bias[-1], self.act[-1], self.w[-1], out=outputs)

    def _backward(self, step: Step, beta: int) -> None:
        inputs = [part.features for part in step.inputs]
        if self.x is not None:
            inputs = [self.x[run] for run in self.runs]
        if self.layout.one_hot is not None:
            self._one_hot_gradient(step, beta)
        z_grad = self.z_grad
        if not self.act:
            for run, x in zip(self.runs, inputs, strict=True):
                _product_gradient(x, z_grad[run], self.g0[run], beta, self.made0[run])
        elif self.is_short:
            self._short(inputs, step.noise, beta)
        else:
            self._last_gradient(z_grad, beta)
            for k in range(len(self.act) - 1, 0, -1):
                self._deactivate(k, step.noise)
                _into(self.g[k - 1], self.act_t[k - 1], self.delta[k], beta, self.made[k - 1])
                _sum_rows(self.delta[k], self.bias_g[k - 1], beta)
                torch.bmm(self.delta[k], self.wt[k - 1], out=self.delta[k - 1])
            self._deactivate(0, step.noise)
            for run, x in zip(self.runs, inputs, strict=True):
                x_t, made = x.transpose(1, 2), self.made0[run]
                _into(self.g0[run], x_t, self.delta[0][run], beta, made)
        if self.x is not None:
            self._table_gradients(step, beta)

    def _last_gradient(self, z_grad: Tensor, beta: int) -> None:
        act, weights = self.act[-1], self.wt[-1]
        if z_grad.dim() == 2:
            _into(self.gt[-1], self.z_row, act, beta, self.made_row)
            _sum_rows(self.z_column, self.bias_g[-1], beta)
            torch.mul(self.z_column, weights, out=self.delta[-1])
        else:
            _into(self.g[-1], self.act_t[-1], z_grad, beta, self.made[-1])
            _sum_rows(z_grad, self.bias_g[-1], beta)
            torch.bmm(z_grad, weights, out=self.delta[-1])

    def _short(self, inputs: list[Tensor], noise: Sequence[Noise], beta: int) -> None:
        """Both maps' gradients, where what comes back to the hidden units is an outer product.

        That is z_grad * weights where a unit is on. So the rows are multiplied by z_grad, which
        is narrower, and the weights by what comes out, which is shorter.
        """
        act, pulled = self.act[0], self.pulled
        _into(self.gt[0], self.z_row, act, beta, self.made_row)
        _sum_rows(self.z_column, self.bias_g[0], beta)
        act.gt_(0)  # 1 where a unit is on
        _dampen(act, 0, noise, self.first)
        for run, x in zip(self.runs, inputs, strict=True):
            torch.mul(x, self.z_column[run], out=pulled[run])
        torch.bmm(pulled.transpose(1, 2), act, out=self.made0)
        if beta:
            self.g0.addcmul_(self.made0, self.wt[0])
        else:
            torch.mul(self.made0, self.wt[0], out=self.g0)

    def _deactivate(self, k: int, noise: Sequence[Noise]) -> None:
        """From the gradient behind an activation to the one before it, in place."""
        delta, kind = self.delta[k], self.layout.activation
        _dampen(delta, k, noise, self.first)
        if kind == "relu":
            aten.threshold_backward.grad_input(delta, self.act[k], 0, grad_input=delta)
        elif kind == "gelu":
            aten.gelu_backward.grad_input(delta, self.aside[k], grad_input=delta)
        else:
            act = self.aside[k] if noise else self.act[k]
            back = aten.tanh_backward if kind == "tanh" else aten.sigmoid_backward
            back.grad_input(delta, act, grad_input=delta)

    def _table_gradients(self, step: Step, beta: int) -> None:
        delta = self.delta[0] if self.delta else self.z_grad
        delta = delta if delta.dim() == 3 else delta.unsqueeze(2)
        at = self.layout.num_features + 1
        below = torch.matmul(delta, self.w0[:, at:].transpose(1, 2))
        for column, grad in enumerate(self.table_g):
            if not beta:
                grad.zero_()
            width = grad.shape[2]
            for run, part in zip(self.runs, step.inputs, strict=True):
                assert part.categories is not None
                piece = below[run, :, at - self.layout.num_features - 1 :][..., :width]
                grad[run].index_add_(1, part.categories[:, column], piece)
            at += width

    def _add_one_hot(self, step: Step) -> None:
        for run, part in zip(self.runs, step.inputs, strict=True):
            codes = self._codes(part.categories)
            found = self.one_hot[run].index_select(1, codes.flatten())
            summed = found.view(len(found), *codes.shape, -1).sum(2)
            out = step.outputs[run]
            out.add_(summed.squeeze(2) if out.dim() == 2 else summed)

    def _one_hot_gradient(self, step: Step, beta: int) -> None:
        if not beta:
            self.one_hot_g.zero_()
        z_grad = self.z_grad if self.z_grad.dim() == 3 else self.z_grad.unsqueeze(2)
        for run, part in zip(self.runs, step.inputs, strict=True):
            codes = self._codes(part.categories)
            spread = z_grad[run].repeat_interleave(codes.shape[1], dim=1)
            self.one_hot_g[run].index_add_(1, codes.flatten(), spread)

    def _codes(self, categories: Tensor | None) -> Tensor:
        assert categories is not None
        assert self.layout.starts is not None
        return categories + self.layout.starts


def _dampen(values: Tensor, k: int, noise: Sequence[Noise], first: int) -> None:
    for start, stop, layers in noise:
        factors = layers[k]
        if factors is not None:
            values[start - first : stop - first].mul_(factors)


def _into(out: Tensor, left: Tensor, right: Tensor, beta: int, made: Tensor) -> None:
    torch.bmm(left, right, out=made)
    if beta:
        out.add_(made)
    else:
        out.copy_(made)


def _sum_rows(values: Tensor, out: Tensor, beta: int) -> None:
    if beta:
        out.add_(values.sum(1))
    else:
        torch.sum(values, 1, out=out)


def _product(x: Tensor, weights: Tensor, outputs: Tensor) -> None:
    """[models, rows, inputs] by [models, inputs, outputs]."""
    if outputs.dim() == 3:
        torch.bmm(x, weights, out=outputs)
    elif x.stride(0) == 0:  # the models share their rows: one product
        torch.mm(weights[:, :, 0], x[0].t(), out=outputs)
    else:
        torch.bmm(weights.transpose(1, 2), x.transpose(1, 2), out=outputs.unsqueeze(1))


def _product_gradient(x: Tensor, z_grad: Tensor, out: Tensor, beta: int, made: Tensor) -> None:
    if z_grad.dim() == 3:
        _into(out, x.transpose(1, 2), z_grad, beta, made)
    elif x.stride(0) == 0:
        flat = out[:, :, 0]
        if beta:
            flat.addmm_(z_grad, x[0])
        else:
            torch.mm(z_grad, x[0], out=flat)
    else:
        _into(out.transpose(1, 2), z_grad.unsqueeze(1), x, beta, made.transpose(1, 2))
