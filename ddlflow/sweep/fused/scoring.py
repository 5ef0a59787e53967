"""The validation metrics of many models of one fold: its rows are read once for all of them."""

import copy

import torch
from torch import Tensor

from ddlflow.sweep.fused.program import Inputs, Program
from ddlflow.sweep.fused.streams import Pool
from ddlflow.sweep.member import Prepared
from ddlflow.train.tasks.scores import Scores
from ddlflow.train.tasks.target import LABEL
from ddlflow.train.tasks.task import Task
from ddlflow.train.validation import after_epoch


class Scoring:
    """Scores the models of one fold, as ``ddlflow.train.validation`` scores one model.

    Args:
        prepared: the data set.
        pool: its rows.
        fold: whose validation rows.
        task: of the models.
        ones: whether features get a last column of ones.
    """

    def __init__(
        self,
        prepared: Prepared,
        pool: Pool,
        fold: int | None,
        task: Task,
        *,
        ones: bool,
    ) -> None:
        self._pool, self._fold = pool, fold
        self._empty = task.empty_scores()
        self._task = task
        self._ones = ones
        num_outputs = task.num_outputs or 1
        self._more = [num_outputs] if num_outputs > 1 else []
        self._device = prepared.device

    def __call__(self, program: Program, first: int, last: int) -> list[dict[str, float]]:
        """The metrics of each of the models [first, last); empty where there are no rows."""
        models = last - first
        scores = [copy.deepcopy(self._empty) for _ in range(models)]
        sums: list[list[Tensor]] = [[] for _ in range(models)]
        for part in self._pool.validation(self._fold, ones=self._ones):
            features, labels = part.features, part.label
            outputs = torch.empty(models, len(labels), *self._more, device=self._device)
            spread = features.expand(models, *features.shape)
            program.outputs(Inputs(first, last, spread, part.categories), outputs)
            for model, own in enumerate(scores):
                own.sums.zero_()
                self._task.score(own, outputs[model], {LABEL: labels})
                sums[model].append(own.sums.clone())  # the next piece zeroes it
        if not sums[0]:
            return [{} for _ in range(models)]
        return [self._computed(own, parts) for own, parts in zip(scores, sums, strict=True)]

    def _computed(self, scores: Scores, sums: list[Tensor]) -> dict[str, float]:
        scores.load(scores.counts.cpu(), torch.stack(sums).cpu().sum(0))
        computed = after_epoch(scores)
        return {name: computed[name] for name in self._task.measures.reported}
