"""The validation metrics of many models of one fold: its rows are read once for all of them."""

import copy

import torch
from torch import Tensor

from ddlflow.models.label_scale import LabelScale
from ddlflow.sweep.fused.program import Inputs, Program
from ddlflow.sweep.fused.streams import Pool
from ddlflow.sweep.member import Prepared
from ddlflow.train.tasks.metrics import Scores
from ddlflow.train.tasks.objectives import Objective
from ddlflow.train.validation import after_epoch, empty_scores, score, told_after_epochs


class Scoring:
    """Scores the models of one fold, as ``ddlflow.train.validation`` scores one model.

    Args:
        prepared: the data set.
        pool: its rows.
        fold: whose validation rows.
        objective: of the models.
        label: how the nets learn the label.
        ones: whether features get a last column of ones.
    """

    def __init__(
        self,
        prepared: Prepared,
        pool: Pool,
        fold: int | None,
        objective: Objective,
        *,
        label: LabelScale,
        ones: bool,
    ) -> None:
        self._pool, self._fold = pool, fold
        self._empty = empty_scores(prepared.manifest)
        self._objective, self._label = objective, label
        self._ones = ones
        num_outputs = objective.num_outputs(len(prepared.manifest.label.classes))
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
                score(own, self._objective, self._label, outputs[model], labels)
                sums[model].append(own.sums.clone())  # the next piece zeroes it
        if not sums[0]:
            return [{} for _ in range(models)]
        return [self._computed(own, parts) for own, parts in zip(scores, sums, strict=True)]

    def _computed(self, scores: Scores, sums: list[Tensor]) -> dict[str, float]:
        scores.load(scores.counts.cpu(), torch.stack(sums).cpu().sum(0))
        computed = after_epoch(scores)
        return {name: computed[name] for name in told_after_epochs(self._objective.kind)}
