"""What a stack needs of the models in it: their numbers as rows, their gradients, their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddlflow.sweep.fused.head import Head

# (first, last, values): values for the models [first, last) of a stack.
Noise = tuple[int, int, list[Tensor | None]]


@dataclass(slots=True)
class Inputs:
    """Rows that the models [first, last) of a stack get, all of them the same or each its own.

    Attributes:
        first: model.
        last: model, exclusive.
        features: [last - first, rows, F]; expanded where the models share them.
        categories: [rows, C], shared, or None.
    """

    first: int
    last: int
    features: Tensor
    categories: Tensor | None


@dataclass(slots=True)
class Step:
    """One batch of the models [first, last) of a stack.

    Attributes:
        inputs: of all these models, in their order.
        labels: [models, rows].
        outputs: [models, rows] or [models, rows, outputs]: filled by the program.
        noise: of dropout, for runs of models; a model in no run has none.
    """

    first: int
    last: int
    inputs: list[Inputs]
    labels: Tensor
    outputs: Tensor
    noise: Sequence[Noise] = ()


class Program(Protocol):
    """Many models of one shape as one computation; each a row of a matrix.

    Attributes:
        numbers: of a row. Rows may hold unused numbers, which are and stay 0.
        penalised: the columns that a penalty acts on, as runs.
        wants_ones: whether features come with a last column of ones.
        head: the models' loss.
    """

    numbers: int
    penalised: list[slice]
    wants_ones: bool
    head: Head

    def pack(self, net: nn.Module, row: Tensor) -> None:
        """Writes a model's trainable parameters into its row."""

    def unpack(self, row: Tensor, net: nn.Module) -> None:
        """Writes a row into a model's parameters."""

    def bind(self, weights: Tensor, grads: Tensor, nets: Sequence[nn.Module]) -> None:
        """Takes over the stack's matrices [models, numbers]."""

    def dropouts(self, rows: int) -> list[tuple[int, tuple[int, ...]]]:
        """The draws of dropout in a pass over so many rows, in their order: (which of the model's
        dropout layers, shape).
        """

    def gradients(self, step: Step) -> Tensor | None:
        """Writes each model's gradient of its mean loss; fills ``step.outputs``.

        Returns:
            Each model's loss summed over the rows, where it is known; else it is computed from
            the outputs, many steps at a time.
        """

    def outputs(self, inputs: Inputs, out: Tensor) -> None:
        """The outputs in evaluation, into ``out`` [models, rows(, outputs)]."""


def row_of(matrix: Tensor, at: int, shape: Sequence[int]) -> Tensor:
    """The columns from ``at`` on of all models, as [models, *shape]."""
    count = 1
    for size in shape:
        count *= size
    return matrix[:, at : at + count].view(len(matrix), *shape)


ALIGNED = 16  # numbers: 64 bytes, a cache line, where each map's weights begin


def aligned(numbers: int) -> int:
    """The next multiple of a cache line."""
    return -(-numbers // ALIGNED) * ALIGNED


def matrix(models: int, numbers: int, device: torch.device) -> Tensor:
    """Zeros [models, numbers]."""
    return torch.zeros(models, numbers, device=device)
