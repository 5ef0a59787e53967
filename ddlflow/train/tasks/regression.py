"""A number, by squared error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.models.call import Batch
from ddlflow.train.tasks.criterion import Criterion, built_in
from ddlflow.train.tasks.measures import REGRESSION, Measures
from ddlflow.train.tasks.predictions import PREDICTION
from ddlflow.train.tasks.regression_scores import RegressionScores
from ddlflow.train.tasks.scores import Scores
from ddlflow.train.tasks.target import LABEL, UNKNOWN, LabelTarget
from ddlflow.train.tasks.task import (
    WHOLE_NET,
    Loss,
    ModelPart,
    TrainingLabels,
)


def _squared_error(outputs: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.mse_loss(outputs, labels.to(outputs.dtype), reduction=reduction)


SQUARED_ERROR = built_in("regression", _squared_error)


@dataclass(frozen=True, slots=True)
class RegressionTask:
    """Outputs are float32 [n]; labels are numbers, of any dtype.

    Attributes:
        criterion: the loss.
        label: what is known of it.
    """

    criterion: Criterion = SQUARED_ERROR
    label: LabelTarget = UNKNOWN

    family: ClassVar[Literal["gaussian"]] = "gaussian"
    targets: ClassVar[tuple[str, ...]] = (LABEL,)
    measures: ClassVar[Measures] = REGRESSION
    parts: ClassVar[tuple[ModelPart, ...]] = WHOLE_NET
    num_outputs: ClassVar[int] = 1

    @property
    def name(self) -> str:
        return self.criterion.name

    @property
    def loss_unit(self) -> float:
        return self.label.scale.loss_unit

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        return self.label.loss(self.criterion, outputs, batch)

    def empty_scores(self) -> Scores:
        return RegressionScores(*self.label.extent, weighted=self.label.weighting.has_column)

    def score(self, scores: Scores, outputs: Tensor, batch: Batch) -> None:
        self.label.score(scores, self.criterion, outputs, batch)

    def example(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        return {LABEL: torch.arange(rows, device=device).float()}

    def advice(self, outputs: Tensor) -> str | None:
        return None

    def baseline(self, known: TrainingLabels) -> Tensor:
        """The mean label, as the shards have it."""
        return torch.tensor([known.mean])

    def predictions(self, outputs: Tensor) -> dict[str, Tensor]:
        """``prediction`` [n]."""
        return {PREDICTION: outputs}

    def column_names(self) -> list[str]:
        return [PREDICTION]

    def columns(self, found: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        return {PREDICTION: pa.array(found[PREDICTION].astype(np.float64))}

    def described(self) -> Mapping[str, Any]:
        return {}

    def output_gradient(self, outputs: Tensor, labels: Tensor, share: float, out: Tensor) -> None:
        """Writes ``share`` times the loss's gradient at stacked outputs [models, n]."""
        torch.sub(outputs, labels, out=out)
        out.mul_(2 * share)

    def stacked_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A loss each row [models, n]."""
        return F.mse_loss(outputs, labels, reduction="none")
