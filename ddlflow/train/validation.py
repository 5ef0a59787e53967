"""The validation metrics after an epoch: each rank scores a share, all get the same bits."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ddlflow.data.shards.batches import Tensors
from ddlflow.data.shards.rows import Rows
from ddlflow.models.call import call
from ddlflow.train.tasks.measures import PREDICTED
from ddlflow.train.tasks.scores import Scores
from ddlflow.train.tasks.task import Task

# Fixed pieces, dealt to the ranks in turn. Their sums are added in the pieces' order, so the
# metrics do not depend on the world; counts are whole numbers, exact in any order.
PIECE_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Validation:
    """Scores a model over rows.

    Attributes:
        rows: standardised as they are read, their targets as the shards hold them.
        net: the model, in evaluation mode when this is called.
        task: whose scores they are.
        rank: this rank.
        world: how many ranks there are.
        group: the process group; None where the world is 1.
        device: where to compute.
    """

    rows: Rows
    net: nn.Module
    task: Task
    rank: int
    world: int
    group: dist.ProcessGroup | None
    device: torch.device

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The metrics over all rows; the same on every rank. Empty where there are no rows."""
        if self.rows.rows == 0:
            return {}
        scores, model = self.task.empty_scores(), call(self.net, self.rows.inputs)
        step = self.rows.piece_rows(PIECE_ROWS)
        starts = range(0, self.rows.rows, step)
        sums = torch.zeros(len(starts), len(scores.sums), dtype=torch.float64)
        buffer = self.rows.empty(min(step, self.rows.rows))
        for piece, start in enumerate(starts):
            if piece % self.world != self.rank:
                continue
            stop = min(start + step, self.rows.rows)
            columns: Tensors = {
                name: torch.from_numpy(array).to(self.device)
                for name, array in self.rows.batch(start, stop, buffer).items()
            }
            scores.sums.zero_()
            self.task.score(scores, model(columns), columns)
            sums[piece] = scores.sums
        counts = scores.counts
        if self.world > 1:
            counts, sums = counts.to(self.device), sums.to(self.device)
            dist.all_reduce(counts, group=self.group)
            dist.all_reduce(sums, group=self.group)  # each piece is zero on all ranks but one
        # Rank 0 alone computes and tells the others: torchmetrics takes a second to import.
        names = self.task.measures.reported
        values = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        if self.rank == 0:
            scores.load(counts.cpu(), sums.cpu().sum(0))
            computed = after_epoch(scores)
            values.copy_(torch.tensor([computed[name] for name in names], dtype=torch.float64))
        if self.world > 1:
            dist.broadcast(values, src=0, group=self.group)
        return dict(zip(names, values.tolist(), strict=True))


def after_epoch(scores: Scores) -> dict[str, float]:
    """The metrics, and how many classes are predicted of any row."""
    predicted = scores.predicted_classes()
    return scores.compute() | ({} if predicted is None else {PREDICTED: float(predicted)})


def row_of(metrics: dict[str, float]) -> dict[str, float]:
    """What an epoch's row of history has of its validation."""
    return {name if name == PREDICTED else f"val_{name}": v for name, v in metrics.items()}
