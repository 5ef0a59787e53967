"""What a training needs to know of the thing that it learns: a ``Task``.

A task says which fields it wants to predict (perhaps none), what is minimised, what is measured and
which way is better, how many outputs a model must have, what is written as predictions and what a
model without features would say. `ddlflow.train.tasks.table` has the built-in ones.

The loss is a total and a count, not a mean: the gradient of a global batch is the sum over its
items divided once by their global count. So slices of any size add up exactly, a short last batch
weighs what it should, and what is counted need not be rows (tokens that are no padding, edges).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ddlflow.models.call import Batch
from ddlflow.train.tasks.measures import Measures
from ddlflow.train.tasks.scores import Scores


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of some items together.

    Attributes:
        total: a scalar that gradients flow through.
        count: of the items: a tensor where the batch alone knows it, such as tokens that are no
            padding.
    """

    total: Tensor
    count: int | Tensor


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A part of the net that has an optimizer of its own.

    Attributes:
        module: its dotted name in the net; empty: the whole of it.
    """

    module: str = ""

    def of(self, net: nn.Module) -> nn.Module:
        """This part of a net."""
        return net.get_submodule(self.module)


WHOLE_NET = (ModelPart(),)


@dataclass(frozen=True, slots=True)
class TrainingLabels:
    """What a model that looks at no feature can know of the rows trained on.

    Attributes:
        shares: of each class, the weight of its rows, on average 1 a row; empty where the label is
            a number.
        mean: of a number.
    """

    shares: tuple[float, ...] = ()
    mean: float = 0.0


class Task(Protocol):
    """What is minimised, measured and predicted.

    Attributes:
        name: for messages: a built-in name or ``module:function``.
        targets: names of the fields that the model is to predict, in a batch beside its inputs.
        measures: what is measured.
        parts: of the net, each with an optimizer.
        num_outputs: that a model must have; None: any number.
        loss_unit: a loss of the net's numbers times this is one of the source's units.
    """

    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def measures(self) -> Measures: ...

    @property
    def parts(self) -> tuple[ModelPart, ...]: ...

    @property
    def num_outputs(self) -> int | None: ...

    @property
    def loss_unit(self) -> float: ...

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """The loss of a batch, whose targets are as the net learns them."""
        ...

    def empty_scores(self) -> Scores:
        """Scores of no rows."""
        ...

    def score(self, scores: Scores, outputs: Tensor, batch: Batch) -> None:
        """Adds a batch to scores; its targets are as the shards hold them."""
        ...

    def example(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """Made targets of so many rows, to try a model on."""
        ...

    def advice(self, outputs: Tensor) -> str | None:
        """What outputs of many unlike rows seem to be, with advice, where they seem to be wrong."""
        ...

    def baseline(self, known: TrainingLabels) -> Tensor | None:
        """The outputs [outputs] of the best model without features; None: there is no such."""
        ...

    def predictions(self, outputs: Tensor) -> dict[str, Tensor]:
        """What is predicted of each row, [n, ...] by name; outputs are in the source's units."""
        ...

    def column_names(self) -> list[str]:
        """The names of the columns that are written."""
        ...

    def columns(self, found: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        """The columns that are written of what ``predictions`` gave, by name."""
        ...

    def described(self) -> Mapping[str, Any]:
        """What a reader of the columns is told, of plain values (JSON)."""
        ...
