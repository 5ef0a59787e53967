"""Many classes: a logit each, by log loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.errors import SpecError
from ddlflow.models.call import Batch
from ddlflow.train.tasks.criterion import Criterion, built_in
from ddlflow.train.tasks.logits import advice_on_logits
from ddlflow.train.tasks.measures import MULTICLASS, Measures
from ddlflow.train.tasks.multiclass_scores import MulticlassScores
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
    return F.cross_entropy(outputs, labels.to(torch.int64), reduction=reduction)


LOG_LOSS = built_in("multiclass", _log_loss)


@dataclass(frozen=True, slots=True)
class MulticlassTask:
    """Outputs are float32 [n, classes], logits; labels are class indices, of any dtype.

    Attributes:
        criterion: the loss.
        label: what is known of it.
    """

    criterion: Criterion = LOG_LOSS
    label: LabelTarget = UNKNOWN

    family: ClassVar[Literal["categorical"]] = "categorical"
    targets: ClassVar[tuple[str, ...]] = (LABEL,)
    measures: ClassVar[Measures] = MULTICLASS
    parts: ClassVar[tuple[ModelPart, ...]] = WHOLE_NET

    @property
    def name(self) -> str:
        return self.criterion.name

    @property
    def num_outputs(self) -> int | None:
        """The classes; None where they are not counted yet.

        Raises:
            SpecError: there are fewer than two.
        """
        number = self.label.num_classes
        if number is not None and number < 2:
            raise SpecError(
                f"train.objective {self.name} reads the label as classes, but {number} are known. "
                "Choose a label with two classes or more, or objective: regression."
            )
        return number

    @property
    def loss_unit(self) -> float:
        return self.label.scale.loss_unit

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        return self.label.loss(self.criterion, outputs, batch)

    def empty_scores(self) -> Scores:
        weighted = self.label.weighting.has_column
        return MulticlassScores(self.label.num_classes or 2, weighted=weighted)

    def score(self, scores: Scores, outputs: Tensor, batch: Batch) -> None:
        self.label.score(scores, self.criterion, outputs, batch)

    def example(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        return {LABEL: torch.arange(rows, device=device) % (self.num_outputs or 2)}

    def advice(self, outputs: Tensor) -> str | None:
        return advice_on_logits(outputs, self.name, of_one_class=False)

    def baseline(self, known: TrainingLabels) -> Tensor:
        """The logits of the classes' shares; a class that no row has counts as half a row."""
        logs = torch.tensor(known.shares, dtype=torch.float64).clamp(min=0.5).log()
        return logs.log_softmax(0).float()

    def predictions(self, outputs: Tensor) -> dict[str, Tensor]:
        """``probabilities`` float32 [n, classes] and ``index`` int64 [n], of the likeliest."""
        return {"probabilities": torch.softmax(outputs, dim=1), "index": outputs.argmax(dim=1)}

    def column_names(self) -> list[str]:
        return [PREDICTION, *(f"{PROBABILITY}_{name}" for name in self.label.classes)]

    def columns(self, found: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        of_class, names = found["probabilities"], self.column_names()[1:]
        scores = {name: np.ascontiguousarray(of_class[:, k]) for k, name in enumerate(names)}
        return classified(found["index"], scores, self.label.classes)

    def described(self) -> Mapping[str, Any]:
        return {"classes": list(self.label.classes)}

    def output_gradient(self, outputs: Tensor, labels: Tensor, share: float, out: Tensor) -> None:
        """Writes ``share`` times the loss's gradient at stacked outputs [models, n, classes].

        Torch's own two steps, so that what cancels in a solo training cancels here too.
        """
        logs = torch.log_softmax(outputs, -1)
        at_class = torch.zeros_like(logs).scatter_(2, labels.unsqueeze(-1), -share)
        torch.ops.aten._log_softmax_backward_data.out(at_class, logs, -1, logs.dtype, out=out)

    def stacked_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A loss each row [models, n]."""
        losses = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(labels.shape)
