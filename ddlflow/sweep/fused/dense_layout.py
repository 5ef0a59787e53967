"""How a linear model or an mlp lies in a row of numbers, many models a matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.sweep.fused.program import aligned, row_of
from ddlflow.train.affine_backward import maps_of

Places = tuple[tuple[int, torch.Size], ...]  # the first column and the shape of each


@dataclass(frozen=True, slots=True)
class Affine:
    """Where an affine map lies in a row: [inputs + 1, outputs].

    Attributes:
        at: the first column.
        inputs: without the bias.
        outputs: of the map.
        bias: the row of the bias: behind the features in the first map, so that its products have
            the bias in them; last in the others.
    """

    at: int
    inputs: int
    outputs: int
    bias: int

    def block(self, matrix: Tensor) -> Tensor:
        """[models, inputs + 1, outputs], a view."""
        return row_of(matrix, self.at, (self.inputs + 1, self.outputs))


@dataclass(frozen=True, slots=True)
class DenseLayout:
    """Where the numbers of a model lie in its row, and what it does with them.

    Attributes:
        activation: of the hidden layers.
        num_features: numeric columns.
        tables: of the embeddings.
        one_hot: of a linear model's categories: a row a code.
        starts: of that table, each category's first row.
        affines: the maps, from below.
        numbers: the row's length.
    """

    activation: str
    num_features: int
    tables: Places
    one_hot: tuple[int, torch.Size] | None
    starts: Tensor | None
    affines: tuple[Affine, ...]
    numbers: int

    @property
    def widest(self) -> int:
        """The outputs of the widest map."""
        return max(affine.outputs for affine in self.affines)

    @property
    def penalised(self) -> list[slice]:
        """The columns of all weights but the biases."""
        runs = [slice(at, at + shape.numel()) for at, shape in self.tables]
        if self.one_hot is not None:
            runs.append(slice(self.one_hot[0], self.one_hot[0] + self.one_hot[1].numel()))
        for affine in self.affines:
            end = affine.at + (affine.inputs + 1) * affine.outputs
            bias = affine.at + affine.bias * affine.outputs
            runs += [slice(affine.at, bias), slice(bias + affine.outputs, end)]
        return [run for run in runs if run.stop > run.start]


def layout_of(net: Linear | Mlp, device: torch.device) -> DenseLayout:
    """The layout of a model's numbers: tables first, each part from a cache line's start on."""
    at = 0
    tables = []
    for table in tables_of(net):
        tables.append((at, table.weight.shape))
        at = aligned(at + table.weight.numel())
    one_hot = None
    if isinstance(net, Linear) and net.one_hot is not None:
        one_hot = (at, net.one_hot.shape)
        at = aligned(at + net.one_hot.numel())
    maps = maps_of(net)
    num_features = maps[0][0].shape[1] - net.embeddings.width
    affines = []
    for k, (weight, _) in enumerate(maps):
        outputs, inputs = weight.shape
        affines.append(Affine(at, inputs, outputs, inputs if k else num_features))
        at = aligned(at + (inputs + 1) * outputs)
    return DenseLayout(
        activation=_activation(net),
        num_features=num_features,
        tables=tuple(tables),
        one_hot=one_hot,
        starts=net.starts.to(device) if isinstance(net, Linear) else None,
        affines=tuple(affines),
        numbers=at,
    )


def tables_of(net: Linear | Mlp) -> list[nn.Embedding]:
    return [table for table in net.embeddings.tables if isinstance(table, nn.Embedding)]


def _activation(net: Linear | Mlp) -> str:
    parts: list[nn.Module] = list(net.layers) if isinstance(net, Mlp) else []
    kinds = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.GELU: "gelu"}
    return next((kinds[type(part)] for part in parts if type(part) in kinds), "relu")
