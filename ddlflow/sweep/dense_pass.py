"""One block of rows through some models of a stack: forward, and back as far as the gradient.

Measured on one core (mlp [100] of 28 features, batch 128, a model's share of 20): forward 9 us,
backward 11 us in products, and 6 us in all that is done number by number.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddlflow.sweep.program import Noise, Step, row_of

if TYPE_CHECKING:
    from ddlflow.sweep.dense import Dense

aten = torch.ops.aten


class Pass:
    """Weights and gradients of neighbouring models as views, with memory for so many rows.

    Args:
        dense: whose.
        edges: the first model of each run that shares its rows, and the last one's end.
        rows: of the block.
    """

    def __init__(self, dense: "Dense", edges: Sequence[int], rows: int) -> None:
        self.dense = dense
        self.first, last = edges[0], edges[-1]
        models = last - self.first
        weights, grads = dense.weights[self.first : last], dense.grads[self.first : last]
        self.runs = [slice(a - self.first, b - self.first) for a, b in pairwise(edges)]
        # The first map has its bias in the block; the others apart.
        bottom, *others = dense.affines
        self.w0, self.g0 = bottom.block(weights), bottom.block(grads)
        self.w = [affine.block(weights)[:, : affine.inputs] for affine in others]
        self.g = [affine.block(grads)[:, : affine.inputs] for affine in others]
        self.bias = [affine.block(weights)[:, affine.inputs :] for affine in others]
        self.bias_g = [affine.block(grads)[:, affine.inputs] for affine in others]
        self.wt = [w.transpose(1, 2) for w in self.w]
        self.tables = [row_of(weights, at, shape) for at, shape in dense.tables]
        self.table_g = [row_of(grads, at, shape) for at, shape in dense.tables]
        if dense.one_hot is not None:
            self.one_hot, self.one_hot_g = (row_of(m, *dense.one_hot) for m in (weights, grads))

        def memory(*shape: int) -> Tensor:
            return torch.empty(models, rows, *shape, device=dense.device)

        widths = [affine.outputs for affine in dense.affines[:-1]]
        last_width = dense.affines[-1].outputs
        self.act = [memory(width) for width in widths]
        self.delta = [memory(width) for width in widths]
        self.aside = [memory(width) for width in widths] if dense.activation != "relu" else []
        self.z_grad = memory(*([last_width] if last_width > 1 else []))
        self.x = memory(bottom.inputs + 1) if dense.tables else None

    def gradients(self, step: Step, share: float, *, add: bool) -> Tensor | None:
        """Forward and backward; ``add``: to the gradients that are there."""
        self.forward(step, step.noise)
        losses = self.dense.head.gradient(step.outputs, step.labels, share, self.z_grad)
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
        if self.dense.one_hot is not None:
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
        act, kind = self.act[k], self.dense.activation
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
            torch.bmm(self.wt[-1], self.act[-1].transpose(1, 2), out=outputs.unsqueeze(1))
            outputs.add_(self.bias[-1][:, 0])
        else:
            torch.baddbmm(self.bias[-1], self.act[-1], self.w[-1], out=outputs)

    def _backward(self, step: Step, beta: int) -> None:
        inputs = [part.features for part in step.inputs]
        if self.x is not None:
            inputs = [self.x[run] for run in self.runs]
        if self.dense.one_hot is not None:
            self._one_hot_gradient(step, beta)
        z_grad = self.z_grad
        if not self.act:
            for run, x in zip(self.runs, inputs, strict=True):
                _product_gradient(x, z_grad[run], self.g0[run], beta)
        else:
            self._last_gradient(z_grad, beta)
            for k in range(len(self.act) - 1, 0, -1):
                self._deactivate(k, step.noise)
                _into(self.g[k - 1], self.act[k - 1].transpose(1, 2), self.delta[k], beta)
                _sum_rows(self.delta[k], self.bias_g[k - 1], beta)
                torch.bmm(self.delta[k], self.wt[k - 1], out=self.delta[k - 1])
            self._deactivate(0, step.noise)
            for run, x in zip(self.runs, inputs, strict=True):
                _into(self.g0[run], x.transpose(1, 2), self.delta[0][run], beta)
        if self.x is not None:
            self._table_gradients(step, beta)

    def _last_gradient(self, z_grad: Tensor, beta: int) -> None:
        act, weights = self.act[-1], self.wt[-1]
        if z_grad.dim() == 2:
            _into(self.g[-1].transpose(1, 2), z_grad.unsqueeze(1), act, beta)
            _sum_rows(z_grad.unsqueeze(2), self.bias_g[-1], beta)
            torch.mul(z_grad.unsqueeze(2), weights, out=self.delta[-1])
        else:
            _into(self.g[-1], act.transpose(1, 2), z_grad, beta)
            _sum_rows(z_grad, self.bias_g[-1], beta)
            torch.bmm(z_grad, weights, out=self.delta[-1])

    def _deactivate(self, k: int, noise: Sequence[Noise]) -> None:
        """From the gradient behind an activation to the one before it, in place."""
        delta, kind = self.delta[k], self.dense.activation
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
        at = self.dense.num_features + 1
        below = torch.matmul(delta, self.w0[:, at:].transpose(1, 2))
        for column, grad in enumerate(self.table_g):
            if not beta:
                grad.zero_()
            width = grad.shape[2]
            for run, part in zip(self.runs, step.inputs, strict=True):
                assert part.categories is not None
                piece = below[run, :, at - self.dense.num_features - 1 :][..., :width]
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
        assert self.dense.starts is not None
        return categories + self.dense.starts


def _dampen(values: Tensor, k: int, noise: Sequence[Noise], first: int) -> None:
    for start, stop, layers in noise:
        factors = layers[k]
        if factors is not None:
            values[start - first : stop - first].mul_(factors)


def _into(out: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
    if beta:
        out.baddbmm_(left, right)
    else:
        torch.bmm(left, right, out=out)


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


def _product_gradient(x: Tensor, z_grad: Tensor, out: Tensor, beta: int) -> None:
    if z_grad.dim() == 3:
        _into(out, x.transpose(1, 2), z_grad, beta)
    elif x.stride(0) == 0:
        flat = out[:, :, 0]
        if beta:
            flat.addmm_(z_grad, x[0])
        else:
            torch.mm(z_grad, x[0], out=flat)
    else:
        _into(out.transpose(1, 2), z_grad.unsqueeze(1), x, beta)
