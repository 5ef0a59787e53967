"""What the scores of all kinds share: their names, their small state, and how states are merged.

A score keeps two tensors: ``counts`` (int64: adding them is exact in any order) and ``sums``
(float64: whoever adds several adds them in one fixed order). Ranks reduce them, workers send them
packed, and ``compute`` turns them into numbers at the end; no prediction is ever kept.

Rows may have weights: whole numbers of ``UNIT`` parts of a mean row, so that adding them up is
exact in any order too. ``counts`` is then in these parts.

A row whose output (or, in a regression, whose label) is not finite is counted as unscored: with one
such row every metric but the loss is nan, and ``compute`` adds ``unscored_rows`` to say why. A
metric that the rows do not define (AUROC of one class, R2 of a constant label, anything of no rows)
is nan too. Nothing here raises for the outputs it meets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddlflow.data.scored import Curves
from ddlflow.train.tasks.weights import UNIT

NAN = float("nan")
HEAD = 4  # the sums that all kinds have: loss, weight of the loss, rows, unscored rows


@dataclass(frozen=True, slots=True)
class PackedScores:
    """The state of scores in small values.

    Attributes:
        index: of the counts that are not 0.
        count: what stands there.
        sums: all of them.
    """

    index: list[int]
    count: list[int]
    sums: list[float]


class Scores(Protocol):
    """Mergeable scores: what all kinds share. The state lives where the last update's rows did.

    Attributes:
        counts: int64 [n]; the last entry counts unscored rows.
        sums: float64 [m]; the first are the loss summed over rows, the sum of its weights, the
            rows, and those that could not be scored.
        unit: what a row of mean weight counts: ``UNIT`` where rows have weights, else 1.
    """

    counts: Tensor
    sums: Tensor
    unit: int = 1

    def update(
        self,
        outputs: Tensor,
        labels: Tensor,
        loss_sum: Tensor | float,
        weights: Tensor | None = None,
        loss_weight: Tensor | float | None = None,
    ) -> None:
        """Adds rows, without waiting for the device.

        Args:
            outputs: what the model gave: logits [n] or [n, 1] (binary), logits [n, C] (multiclass),
                predictions [n] or [n, 1] (regression).
            labels: float32 0 or 1 [n], int64 class [n], float32 [n].
            loss_sum: the objective summed over these rows.
            weights: int64 [n] parts of ``UNIT``, where rows have weights.
            loss_weight: the sum of the weights in ``loss_sum``; None: of one a row.
        """
        ...

    def predicted_classes(self) -> int | None:
        """How many classes are the likeliest of some row; None for a regression."""
        ...

    def compute(self) -> dict[str, float]:
        """The metrics by name, and "rows" (and "unscored_rows" where there are any)."""
        ...

    def curves(self) -> Curves:
        """What the plots show."""
        ...

    def load(self, counts: Tensor, sums: Tensor) -> None:
        """Takes a copy of a state, such as one that was summed over ranks."""
        self._refuse_misfit(counts, sums)
        self.counts = counts.to(torch.int64, copy=True)
        self.sums = sums.to(torch.float64, copy=True)

    def merge(self, other: "Scores") -> None:
        """Adds another's rows. Merge in a fixed order to get the same last bits of the sums."""
        self._refuse_misfit(other.counts, other.sums)
        device = self.counts.device
        self.counts = self.counts + other.counts.to(device)
        self.sums = self.sums + other.sums.to(device)

    def packed(self) -> PackedScores:
        """The state without what is 0, small enough to send."""
        counts = self.counts.cpu()
        filled = counts.nonzero().flatten()
        return PackedScores(filled.tolist(), counts[filled].tolist(), self.sums.tolist())

    def merge_packed(self, packed: PackedScores) -> None:
        """Adds the rows of scores of the same kind that were `packed` elsewhere."""
        counts = torch.zeros_like(self.counts, device="cpu")
        counts[torch.tensor(packed.index, dtype=torch.int64)] = torch.tensor(
            packed.count, dtype=torch.int64
        )
        sums = torch.tensor(packed.sums, dtype=torch.float64)
        self._refuse_misfit(counts, sums)
        self.counts = self.counts + counts.to(self.counts.device)
        self.sums = self.sums + sums.to(self.sums.device)

    def _refuse_misfit(self, counts: Tensor, sums: Tensor) -> None:
        if counts.shape != self.counts.shape or sums.shape != self.sums.shape:
            raise ValueError(
                f"a state of {len(counts)} counts and {len(sums)} sums does not fit scores "
                f"of {len(self.counts)} and {len(self.sums)}: both have to be of one kind of label"
            )

    def _total(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """The sum over rows [n], in float64."""
        if weights is None:
            return values.sum(dtype=torch.float64)
        return (values.double() * weights).sum() / UNIT

    def _of_rows(self, counts: Tensor) -> Tensor:
        """Counts in rows: as they are, or in rows of mean weight, float64."""
        return counts if self.unit == 1 else counts.double() / self.unit

    def _add(
        self,
        rows: int,
        index: Tensor,
        weights: Tensor | None,
        loss: tuple[Tensor | float, Tensor | float | None],
        sums: list[Tensor],
    ) -> None:
        """Counts each index [n] by its weight and adds the sums, on the device of the index."""
        unscored = (index == len(self.counts) - 1).sum()
        head = [loss[0], float(rows) if loss[1] is None else loss[1], float(rows), unscored]
        device = index.device
        if self.counts.device != device:
            self.counts, self.sums = self.counts.to(device), self.sums.to(device)
        # Not torch.bincount: on CUDA that waits for the device to learn the greatest index.
        self.counts.scatter_add_(0, index, torch.ones_like(index) if weights is None else weights)
        self.sums += torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float64, device=device).detach()
                for value in [*head, *sums]
            ]
        )

    def _finish(self, names: Sequence[str], metrics: dict[str, float]) -> dict[str, float]:
        """Adds the loss and the numbers of rows; nan where a row could not be scored."""
        loss, weight, rows, unscored = self.sums[:HEAD].tolist()
        metrics["loss"] = ratio(loss, weight)
        result = {name: NAN if unscored and name != "loss" else metrics[name] for name in names}
        return result | {"rows": rows} | ({"unscored_rows": unscored} if unscored else {})


def ratio(part: float, whole: float) -> float:
    """part / whole; nan of nothing."""
    return part / whole if whole else NAN
