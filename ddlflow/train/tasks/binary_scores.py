"""Scores of a binary classifier: two histograms of its logit, from which every curve follows.

Why not torchmetrics' own ``update``: its binned metrics compare every row with every threshold.
Here one ``scatter_add`` puts a row into the histogram of its class, which costs the same for 32,768
thresholds as for ten, and the histograms' running sums are torchmetrics' ``confmat`` state, from
which torchmetrics computes.

The grid is cut from the bits of |logit| + 1 as a float32, so a logit falls into the same bin on
every processor: 2,048 bins in |logit| < 1, as many in 1 to 3, in 3 to 7, ... up to 255. The binning
changes AUROC by at most half the share of (positive, negative) pairs that fall into one bin;
``curves`` states that bound as ``auroc_within``.
Source: measured against scikit-learn's exact values on 200,000 rows of Gaussian logits with 50, 10,
1 and 0.1 % positives, of spread 1 and 20: AUROC within 2e-5, average precision within 5e-5; all
logits within 0.05 of each other: 1e-4 and 4e-3. Equal logits are ties, exactly. One update of
65,536 rows costs 1 ms on one core, where the forward pass of 28-100-1 costs 12 ms.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlflow.data.scored import (
    BinaryCurves,
    ClassHistogram,
    PrecisionRecallCurve,
    Reliability,
    RocCurve,
)
from ddlflow.train.tasks.measures import BINARY
from ddlflow.train.tasks.scores import HEAD, Scores, ratio
from ddlflow.train.tasks.weights import UNIT

STEPS = 2048  # bins of an octave of |logit| + 1: the upper 11 bits of a float32's mantissa
OCTAVES = 8  # up to |logit| = 2**8 - 1; whatever is beyond shares the last bin
HALF = STEPS * OCTAVES  # bins on each side of 0
BINS = 2 * HALF


class BinaryScores(Scores):
    """counts: a histogram of the logit for negative rows, one for positive rows, unscored."""

    def __init__(self, *, weighted: bool = False) -> None:
        self.unit = UNIT if weighted else 1
        self.counts = torch.zeros(2 * BINS + 1, dtype=torch.int64)
        self.sums = torch.zeros(HEAD + 2, dtype=torch.float64)  # log loss, squared error

    @torch.no_grad()
    def update(
        self,
        outputs: Tensor,
        labels: Tensor,
        loss_sum: Tensor | float,
        weights: Tensor | None = None,
        loss_weight: Tensor | float | None = None,
    ) -> None:
        logit, label = outputs.reshape(-1).float(), labels.reshape(-1).float()
        index = _bin_of_logit(logit) + BINS * (label > 0.5)
        log_loss = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
        squared = (torch.sigmoid(logit) - label).square()
        self._add(
            len(logit),
            torch.where(logit.isfinite(), index, 2 * BINS),
            weights,
            (loss_sum, loss_weight),
            [self._total(log_loss, weights), self._total(squared, weights)],
        )

    def predicted_classes(self) -> int:
        return sum(rows > 0 for rows in torch.tensor(self.confusion()).sum(0).tolist())

    def compute(self) -> dict[str, float]:
        scored = float(self._of_rows(self.counts[:-1].sum()))
        (tn, fp), (fn, tp) = self.confusion()
        auroc, average_precision = self._areas()
        return self._finish(
            BINARY.names,
            {
                "auroc": auroc,
                "average_precision": average_precision,
                "accuracy": ratio(tp + tn, scored),
                "f1": ratio(2 * tp, 2 * tp + fp + fn),
                "log_loss": ratio(float(self.sums[HEAD]), scored),
                "brier": ratio(float(self.sums[HEAD + 1]), scored),
            },
        )

    def curves(self) -> BinaryCurves:
        """ROC and precision-recall (None where undefined), reliability, scores, confusion."""
        from torchmetrics.classification import BinaryPrecisionRecallCurve, BinaryROC

        by_class = self.by_class()
        negatives, positives = by_class.sum(1).tolist()
        roc: RocCurve | None = None
        precision_recall: PrecisionRecallCurve | None = None
        within: float | None = None
        if negatives and positives:
            fpr, tpr, threshold = self._from_counts(BinaryROC)
            precision = self._from_counts(BinaryPrecisionRecallCurve)[0][:-1].flip(0)
            keep = _thinned(fpr, tpr)
            pairs = float((by_class[0] * by_class[1].double()).sum())
            roc = RocCurve(fpr[keep].tolist(), tpr[keep].tolist(), threshold[keep].tolist())
            within = pairs / 2 / negatives / positives
            keep = keep[~precision[keep].isnan()]  # nan where no row is called positive
            precision_recall = PrecisionRecallCurve(
                tpr[keep].tolist(), precision[keep].tolist(), threshold[keep].tolist()
            )
        return BinaryCurves(
            roc=roc,
            precision_recall=precision_recall,
            auroc_within=within,
            scores=_score_histogram(by_class),
            reliability=_reliability(by_class),
            confusion=self.confusion(),
        )

    def by_class(self) -> Tensor:
        """Rows of each class in each bin of the logit: [2, BINS], on the CPU."""
        return self._of_rows(self.counts[:-1].cpu()).reshape(2, BINS)

    def confusion(self) -> list[list[Any]]:
        """Rows by true (first) and predicted class; positive where the probability is >= 0.5."""
        by_class = self.by_class()
        return torch.stack([by_class[:, :HALF].sum(1), by_class[:, HALF:].sum(1)], 1).tolist()

    def _areas(self) -> tuple[float, float]:
        """AUROC and average precision; nan where a class that they need has no row.

        They are torchmetrics' binned ones, summed straight from the histograms: 0.3 ms where its
        own compute takes 9 ms (and 1.3 s to import), which trainings of a second would feel.
        """
        by_class = self.by_class()
        filled = by_class.any(0)  # empty bins add nothing to either sum
        negative, positive = by_class[:, filled].flip(1).double()  # the highest logits first
        called_negative, called_positive = negative.cumsum(0), positive.cumsum(0)
        negatives, positives = float(negative.sum()), float(positive.sum())
        above = called_positive - positive / 2  # positive rows above a negative one; ties by half
        precision = called_positive / (called_positive + called_negative)
        return (
            ratio(float((negative * above).sum()), negatives * positives),
            ratio(float((positive * precision).sum()), positives),
        )

    def _from_counts(self, metric_class: Any) -> Any:
        """A binned torchmetrics metric of our histograms, in float64."""
        by_class = self.by_class().double()
        called = F.pad(by_class.flip(1).cumsum(1).flip(1), (0, 1))  # [2, BINS + 1] at or above
        total = by_class.sum(1, keepdim=True)
        thresholds = torch.sigmoid(_logit_edges())
        # Not synchronised: the counts are of all ranks already, and one rank alone computes.
        metric = metric_class(thresholds=thresholds, validate_args=False, sync_on_compute=False)
        metric.update(torch.empty(0), torch.empty(0, dtype=torch.int64))  # it warns of none at all
        metric.merge_state({"confmat": torch.stack([total - called, called], -1).transpose(0, 1)})
        return metric.compute()


def _bin_of_logit(logit: Tensor) -> Tensor:
    """The bin of each logit [n], int64 in 0 .. BINS - 1 (of no meaning where it is not finite)."""
    # Positive floats are ordered as their bits are: the exponent and 11 bits of mantissa number
    # bins whose width doubles with each octave. All of it is exact, whatever the processor.
    upper_bits = (logit.abs() + 1).view(torch.int32) >> 12
    step = (upper_bits - (0x3F800000 >> 12)).clamp(max=HALF - 1).long()  # 0x3F800000 is 1.0
    return torch.where(logit < 0, HALF - 1 - step, HALF + step)


def _logit_edges() -> Tensor:
    """The edges of the bins of the logit: float64 [BINS + 1]."""
    step = torch.arange(HALF + 1)
    edges = torch.exp2((step // STEPS).double()) * (1 + (step % STEPS).double() / STEPS) - 1
    return torch.cat([-edges.flip(0), edges[1:]])


def _probability_of_bins() -> Tensor:
    """The probability at the middle of each bin: float64 [BINS]."""
    edges = _logit_edges()
    return torch.sigmoid((edges[1:] + edges[:-1]) / 2)


def _thinned(fpr: Tensor, tpr: Tensor, steps: int = 400) -> Tensor:
    """Indices of at most 2 * steps + 1 points that a plot cannot tell from the whole curve."""
    cell = (fpr * steps).floor() + (tpr * steps).floor()  # never falls along the curve
    keep = torch.ones_like(cell, dtype=torch.bool)
    keep[1:-1] = cell[1:-1] != cell[:-2]
    return keep.nonzero().flatten()


def _score_histogram(by_class: Tensor, bins: int = 50) -> ClassHistogram:
    """Rows of each class over the probability in equal steps."""
    cell = (_probability_of_bins() * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(2, bins, dtype=by_class.dtype).index_add_(1, cell, by_class)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return ClassHistogram(edges.tolist(), counts.tolist())


def _reliability(by_class: Tensor, groups: int = 20) -> Reliability:
    """Predicted against observed share of positives in groups of about equally many rows.

    Equally many rows rather than equal steps of the probability: with one positive in a thousand
    rows, equal steps would put nearly all rows into the first group.
    """
    rows = by_class.sum(0).double()
    total = rows.sum()
    # A bin belongs to the group in which its middle row lies; ties are never torn apart.
    group = ((rows.cumsum(0) - rows / 2) / total.clamp(min=1) * groups).long().clamp(max=groups - 1)

    def by_group(values: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64).index_add_(0, group, values)

    size = by_group(rows)
    filled = size > 0
    size = size[filled]
    predicted = by_group(rows * _probability_of_bins())[filled] / size
    observed = by_group(by_class[1].double())[filled] / size
    error = ratio(float(((predicted - observed).abs() * size).sum()), float(total))
    shown = size.to(by_class.dtype)
    return Reliability(predicted.tolist(), observed.tolist(), shown.tolist(), error)
