"""Scores of a classifier of many classes: the confusion matrix, and the log loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.data.scored import MulticlassCurves
from ddlflow.train.tasks.measures import MULTICLASS
from ddlflow.train.tasks.scores import HEAD, Scores, ratio
from ddlflow.train.tasks.weights import UNIT


class MulticlassScores(Scores):
    """counts: the confusion matrix [C, C] by true and predicted class, unscored."""

    def __init__(self, num_classes: int, *, weighted: bool = False) -> None:
        self.unit = UNIT if weighted else 1
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64)
        self.sums = torch.zeros(HEAD + 1, dtype=torch.float64)  # log loss

    @torch.no_grad()
    def update(
        self,
        outputs: Tensor,
        labels: Tensor,
        loss_sum: Tensor | float,
        weights: Tensor | None = None,
        loss_weight: Tensor | float | None = None,
    ) -> None:
        logits = outputs.float()
        log_loss = F.cross_entropy(logits, labels, reduction="none")
        index = labels * self.num_classes + logits.argmax(1)
        self._add(
            len(labels),
            # One sum a row instead of C tests: a sum is finite only if all its terms are.
            torch.where(logits.sum(1).isfinite(), index, self.num_classes**2),
            weights,
            (loss_sum, loss_weight),
            [self._total(log_loss, weights)],
        )

    def predicted_classes(self) -> int:
        return int((self.confusion().sum(0) > 0).sum())

    def compute(self) -> dict[str, float]:
        matrix = self.confusion().double()
        scored, hits = float(matrix.sum()), matrix.diagonal()
        seen = matrix.sum(0) + matrix.sum(1)
        f1 = 2 * hits[seen > 0] / seen[seen > 0]  # a class neither seen nor predicted has no F1
        return self._finish(
            MULTICLASS.names,
            {
                "accuracy": ratio(float(hits.sum()), scored),
                "f1_macro": ratio(float(f1.sum()), len(f1)),
                "log_loss": ratio(float(self.sums[HEAD]), scored),
            },
        )

    def curves(self) -> MulticlassCurves:
        return MulticlassCurves(self.confusion().tolist())

    def confusion(self) -> Tensor:
        counts = self._of_rows(self.counts[:-1].cpu())
        return counts.reshape(self.num_classes, self.num_classes)
