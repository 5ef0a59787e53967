"""The built-in models by hand, many at once: blocks of models and of rows that fit the cache.

Autograd keeps what it needs in fresh memory at each step and walks a graph; here every product
writes into memory that is kept, and a block of rows is taken as far as the gradient while its
activations are in the cache (dense_pass.py).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.sweep.fused.dense_layout import layout_of, tables_of
from ddlflow.sweep.fused.dense_pass import DensePass
from ddlflow.sweep.fused.head import Head
from ddlflow.sweep.fused.program import Inputs, Noise, Step, row_of
from ddlflow.train.affine_backward import maps_of

# Activations that are worked on at a time: a block of rows through some models, in the widest
# layer. 2 MiB of float32; measured with mlp [100] and batches of 128 to 16,384 rows: a step gets up
# to a third faster from 2^16 to 2^19, where the calls weigh little and the cache still holds it.
BLOCK_NUMBERS = 1 << 19
BLOCK_ROWS = 512  # of these at a time where a batch has more: rather few models than few rows


def takes(net: nn.Module) -> bool:
    """Whether these formulas are the model's: any built-in one but for batch norm."""
    if type(net) is Linear:
        return net.only is None
    known = nn.Linear | nn.ReLU | nn.Tanh | nn.Sigmoid | nn.GELU | nn.Dropout
    return type(net) is Mlp and all(isinstance(part, known) for part in net.layers)


class Dense:
    """A stack of linear models or mlps; a ``Program``.

    Args:
        net: one of them.
        head: the loss of its outputs.
    """

    wants_ones = True

    def __init__(self, net: nn.Module, head: Head, *, device: torch.device) -> None:
        assert isinstance(net, Linear | Mlp)
        self.head = head
        self.device = device
        self.layout = layout_of(net, device)
        self.numbers = self.layout.numbers
        self.penalised = self.layout.penalised
        self._passes: dict[tuple[int, ...], DensePass] = {}

    def pack(self, net: nn.Module, row: Tensor) -> None:
        for weights, bias, own, own_bias in self._pairs(net, row):
            weights.copy_(own)
            if bias is not None and own_bias is not None:
                bias.copy_(own_bias)

    def unpack(self, row: Tensor, net: nn.Module) -> None:
        for weights, bias, own, own_bias in self._pairs(net, row):
            own.copy_(weights)
            if bias is not None and own_bias is not None:
                own_bias.copy_(bias)

    def _pairs(
        self, net: nn.Module, row: Tensor
    ) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]]:
        """(columns of the row, of its bias, the model's weights, its bias), views of one shape."""
        assert isinstance(net, Linear | Mlp)
        matrix = row.unsqueeze(0)
        found: list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]] = [
            (row_of(matrix, at, shape)[0], None, table.weight.data, None)
            for (at, shape), table in zip(self.layout.tables, tables_of(net), strict=True)
        ]
        if self.layout.one_hot is not None and isinstance(net, Linear) and net.one_hot is not None:
            at, shape = self.layout.one_hot
            found.append((row_of(matrix, at, shape)[0], None, net.one_hot.data, None))
        for affine, (weight, own_bias) in zip(self.layout.affines, maps_of(net), strict=True):
            block, cut = affine.block(matrix)[0], affine.bias
            own = weight.data.t()
            found.append((block[:cut], block[cut], own[:cut], own_bias.data))
            if cut < affine.inputs:
                found.append((block[cut + 1 :], None, own[cut:], None))
        return found

    def bind(self, weights: Tensor, grads: Tensor, nets: Sequence[nn.Module]) -> None:
        self.weights, self.grads = weights, grads
        self._passes.clear()

    def dropouts(self, rows: int) -> list[tuple[int, tuple[int, ...]]]:
        return [(k, (rows, affine.outputs)) for k, affine in enumerate(self.layout.affines[:-1])]

    def gradients(self, step: Step) -> Tensor | None:
        rows = step.labels.shape[1]
        losses = []
        for few in self._tiles(step.first, step.last, rows):
            total: Tensor | None = None
            for start, piece in self._blocks(_narrow(step, *few), few):
                part = self._pass(piece).gradients(piece, 1.0 / rows, add=start > 0)
                total = part if total is None or part is None else total + part
            losses += [] if total is None else [total]
        return torch.cat(losses) if losses else None

    def outputs(self, inputs: Inputs, out: Tensor) -> None:
        whole = Step(inputs.first, inputs.last, [inputs], out, out)
        for few in self._tiles(inputs.first, inputs.last, out.shape[1]):
            for _, piece in self._blocks(_narrow(whole, *few), few):
                self._pass(piece).forward(piece, ())

    def _tiles(self, first: int, last: int, rows: int) -> list[tuple[int, int]]:
        """Runs of models whose activations of a block of rows fit the cache."""
        if self.device.type == "cuda":
            return [(first, last)]
        most = max(1, BLOCK_NUMBERS // (min(rows, BLOCK_ROWS) * self.layout.widest))
        count = -(-(last - first) // most)
        edges = [first + (last - first) * k // count for k in range(count + 1)]
        return list(pairwise(edges))

    def _blocks(self, step: Step, models: tuple[int, int]) -> Iterator[tuple[int, Step]]:
        """(first row, block of rows) of a batch, as even as can be."""
        rows = step.labels.shape[1]
        most = rows
        if self.device.type != "cuda":
            fitting = BLOCK_NUMBERS // ((models[1] - models[0]) * self.layout.widest)
            most = max(min(rows, BLOCK_ROWS), fitting)
        count = -(-rows // most)
        if count == 1:
            yield 0, step
            return
        for start, stop in pairwise([rows * k // count for k in range(count + 1)]):
            yield start, _piece(step, start, stop)

    def _pass(self, step: Step) -> DensePass:
        rows = step.labels.shape[1]
        edges = [step.first, *(part.last for part in step.inputs)]
        key = (rows, *edges)
        if key not in self._passes:
            self._passes[key] = DensePass(
                self.layout, self.head, self.weights, self.grads, edges=edges, rows=rows
            )
        return self._passes[key]


def _narrow(step: Step, first: int, last: int) -> Step:
    """The batch of some of its models."""
    if (first, last) == (step.first, step.last):
        return step
    inputs = []
    for part in step.inputs:
        a, b = max(first, part.first), min(last, part.last)
        if a < b:
            features = part.features[a - part.first : b - part.first]
            inputs.append(Inputs(a, b, features, part.categories))
    noise: list[Noise] = [
        (max(first, a), min(last, b), layers)
        for a, b, layers in step.noise
        if max(first, a) < min(last, b)
    ]
    models = slice(first - step.first, last - step.first)
    return Step(first, last, inputs, step.labels[models], step.outputs[models], noise)


def _piece(step: Step, start: int, stop: int) -> Step:
    """Some rows of a batch."""
    inputs = [
        Inputs(
            part.first,
            part.last,
            part.features[:, start:stop],
            None if part.categories is None else part.categories[start:stop],
        )
        for part in step.inputs
    ]
    noise: list[Noise] = [
        (first, last, [None if n is None else n[start:stop] for n in layers])
        for first, last, layers in step.noise
    ]
    labels, outputs = step.labels[:, start:stop], step.outputs[:, start:stop]
    return Step(step.first, step.last, inputs, labels, outputs, noise)
