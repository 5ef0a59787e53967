"""The validation metrics after an epoch: each rank scores a share, all get the same bits."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddlflow.data.shards.batches import Tensors
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.rows import Rows
from ddlflow.models.call import call
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.train.tasks.metrics import Kind, Scores, metric_names, scores_for
from ddlflow.train.tasks.objectives import Objective
from ddlflow.train.weights import ALL_ALIKE, Weighting

# Fixed pieces, dealt to the ranks in turn. Their sums are added in the pieces' order, so the
# metrics do not depend on the world; counts are whole numbers, exact in any order.
PIECE_ROWS = 65_536
PREDICTED = "predicted_classes"


@dataclass(frozen=True, slots=True)
class Validation:
    """Scores a model over rows.

    Attributes:
        rows: standardised as they are read.
        net: the model, in evaluation mode when this is called.
        objective: its loss.
        empty: gives empty scores.
        rank: this rank.
        world: how many ranks there are.
        group: the process group; None where the world is 1.
        device: where to compute.
        label: how the net learns the label; the rows have it as it is.
        weighting: of the rows.
    """

    rows: Rows
    net: nn.Module
    objective: Objective
    empty: Scores
    rank: int
    world: int
    group: dist.ProcessGroup | None
    device: torch.device
    label: LabelScale = AS_IT_IS
    weighting: Weighting = ALL_ALIKE

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The metrics over all rows; the same on every rank. Empty where there are no rows."""
        if self.rows.rows == 0:
            return {}
        scores, model = self.empty, call(self.net, self.rows.inputs)
        scores.counts.zero_()
        starts = range(0, self.rows.rows, PIECE_ROWS)
        sums = torch.zeros(len(starts), len(scores.sums), dtype=torch.float64)
        buffer = self.rows.empty(min(PIECE_ROWS, self.rows.rows))
        for piece, start in enumerate(starts):
            if piece % self.world != self.rank:
                continue
            stop = min(start + PIECE_ROWS, self.rows.rows)
            self.rows.read(start, stop, buffer, 0)
            columns: Tensors = {
                name: torch.from_numpy(array[: stop - start]).to(self.device)
                for name, array in buffer.items()
            }
            labels, own = columns["label"], columns.get("weight")
            outputs = model(columns)
            scores.sums.zero_()
            learnt = self.objective, self.label
            score(scores, *learnt, outputs, labels, weighting=self.weighting, own=own)
            sums[piece] = scores.sums
        counts = scores.counts
        if self.world > 1:
            counts, sums = counts.to(self.device), sums.to(self.device)
            dist.all_reduce(counts, group=self.group)
            dist.all_reduce(sums, group=self.group)  # each piece is zero on all ranks but one
        # Rank 0 alone computes and tells the others: torchmetrics takes a second to import.
        names = told_after_epochs(self.objective.kind)
        values = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        if self.rank == 0:
            scores.load(counts.cpu(), sums.cpu().sum(0))
            computed = after_epoch(scores)
            values.copy_(torch.tensor([computed[name] for name in names], dtype=torch.float64))
        if self.world > 1:
            dist.broadcast(values, src=0, group=self.group)
        return dict(zip(names, values.tolist(), strict=True))


def score(
    scores: Scores,
    objective: Objective,
    label: LabelScale,
    outputs: Tensor,
    labels: Tensor,
    *,
    weighting: Weighting = ALL_ALIKE,
    own: Tensor | None = None,
) -> None:
    """Adds rows to scores, in the label's units.

    Args:
        scores: to add to.
        objective: its loss sees what the net learns.
        label: how the net learns the label.
        outputs: of the net.
        labels: as the shards hold them.
        weighting: of the rows.
        own: their own weights, where they have any.
    """
    if weighting != ALL_ALIKE:
        weights = weighting.of_loss(labels, own)
        loss = objective.weighted_sum(outputs, label.of_labels(labels), weights)
        loss, total = loss.double() * label.loss_unit, weights.sum(dtype=torch.float64)
        given = label.to_labels(outputs)
        scores.update(given, labels, loss, weighting.of_scores(own), total)
        return
    loss = objective.loss_sum(outputs, label.of_labels(labels))
    scores.update(label.to_labels(outputs), labels, loss.double() * label.loss_unit)


def told_after_epochs(kind: Kind) -> list[str]:
    """The names of what is told of the validation rows after each epoch."""
    return [*metric_names(kind), *([PREDICTED] if kind != "regression" else [])]


def after_epoch(scores: Scores) -> dict[str, float]:
    """The metrics, and how many classes are predicted of any row."""
    predicted = scores.predicted_classes()
    return scores.compute() | ({} if predicted is None else {PREDICTED: float(predicted)})


def row_of(metrics: dict[str, float]) -> dict[str, float]:
    """What an epoch's row of history has of its validation."""
    return {name if name == PREDICTED else f"val_{name}": v for name, v in metrics.items()}


def empty_scores(manifest: Manifest) -> Scores:
    """Scores for the label of a data set; a regression's plots span its training labels."""
    label = manifest.label
    if label.kind != "regression":
        return scores_for(label.kind, len(label.classes), weighted=manifest.has_weights)
    known = manifest.label_statistics("train")
    extent = float(known.minimum[0]), float(known.maximum[0])
    return scores_for(label.kind, label_range=extent, weighted=manifest.has_weights)
