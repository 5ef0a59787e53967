"""Two classes: the logit of the second one, by log loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.models.call import Batch
from ddlflow.train.tasks.binary_scores import BinaryScores
from ddlflow.train.tasks.criterion import Criterion, built_in
from ddlflow.train.tasks.logits import advice_on_logits
from ddlflow.train.tasks.measures import BINARY, Measures
from ddlflow.train.tasks.predictions import PREDICTION, PROBABILITY, classified
from ddlflow.train.tasks.scores import Scores
from ddlflow.train.tasks.target import LABEL, UNKNOWN, LabelTarget
from ddlflow.train.tasks.task import (
    WHOLE_NET,
    Loss,
    ModelPart,
    TrainingLabels,
)


def _log_loss(outputs: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        outputs, labels.to(outputs.dtype), reduction=reduction
    )


LOG_LOSS = built_in("binary", _log_loss)


@dataclass(frozen=True, slots=True)
class BinaryTask:
    """Outputs are float32 [n], logits of the second class; labels 0 or 1, of any dtype.

    Attributes:
        criterion: the loss.
        label: what is known of it.
    """

    criterion: Criterion = LOG_LOSS
    label: LabelTarget = UNKNOWN

    family: ClassVar[Literal["bernoulli"]] = "bernoulli"
    targets: ClassVar[tuple[str, ...]] = (LABEL,)
    measures: ClassVar[Measures] = BINARY
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
        return BinaryScores(weighted=self.label.weighting.has_column)

    def score(self, scores: Scores, outputs: Tensor, batch: Batch) -> None:
        self.label.score(scores, self.criterion, outputs, batch)

    def example(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        return {LABEL: (torch.arange(rows, device=device) % 2).float()}

    def advice(self, outputs: Tensor) -> str | None:
        return advice_on_logits(outputs, self.name, of_one_class=True)

    def baseline(self, known: TrainingLabels) -> Tensor:
        """The logit of the second class's share; a class that no row has counts as half a row."""
        logs = torch.tensor(known.shares, dtype=torch.float64).clamp(min=0.5).log()
        return (logs[1:] - logs[:1]).float()

    def predictions(self, outputs: Tensor) -> dict[str, Tensor]:
        """``probability`` float32 [n], of the second class."""
        return {PROBABILITY: torch.sigmoid(outputs)}

    def column_names(self) -> list[str]:
        return [PREDICTION, PROBABILITY]

    def columns(self, found: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        probability = found[PROBABILITY]
        index = (probability >= 0.5).astype(np.int64)
        return classified(index, {PROBABILITY: probability}, self.label.classes)

    def described(self) -> Mapping[str, Any]:
        classes = self.label.classes
        return {"classes": list(classes), "probability_of": classes[1]}

    def output_gradient(self, outputs: Tensor, labels: Tensor, share: float, out: Tensor) -> None:
        """Writes ``share`` times the loss's gradient at stacked outputs [models, n]."""
        torch.sigmoid(outputs, out=out)
        out.sub_(labels).mul_(share)

    def stacked_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A loss each row [models, n]."""
        return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
