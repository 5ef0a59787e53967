"""The validation metrics of many models of one fold: its rows are read once for all of them."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from ddlflow.sweep.member import Prepared
from ddlflow.sweep.program import Inputs, Program
from ddlflow.sweep.streams import validation_rows
from ddlflow.train.metrics import Scores, metric_names
from ddlflow.train.objectives import Objective
from ddlflow.train.validation import PIECE_ROWS, empty_scores

HELD_BYTES = 64 << 20  # a fold's validation rows up to this size are kept from epoch to epoch
Piece = tuple[Tensor, Tensor | None, Tensor]  # features, categories, labels


class Scoring:
    """Scores the models of one fold, as ``ddlflow.train.validation`` scores one model.

    Args:
        prepared: the data set.
        fold: whose validation rows.
        objective: of the models.
        ones: whether features get a last column of ones.
    """

    def __init__(
        self, prepared: Prepared, fold: int | None, objective: Objective, *, ones: bool
    ) -> None:
        self._rows = validation_rows(prepared.folds[fold])
        self._empty = empty_scores(prepared.folder, prepared.manifest)
        self._objective = objective
        self._ones = ones
        num_outputs = objective.num_outputs(len(prepared.manifest.label.classes))
        self._more = [num_outputs] if num_outputs > 1 else []
        self._device = prepared.device
        self._held: list[Piece] | None = None

    def __call__(self, program: Program, first: int, last: int) -> list[dict[str, float]]:
        """The metrics of each of the models [first, last); empty where there are no rows."""
        models = last - first
        if self._rows.rows == 0:
            return [{} for _ in range(models)]
        scores = [copy.deepcopy(self._empty) for _ in range(models)]
        sums: list[list[Tensor]] = [[] for _ in range(models)]
        for features, categories, labels in self._pieces():
            outputs = torch.empty(models, len(labels), *self._more, device=self._device)
            spread = features.expand(models, *features.shape)
            program.outputs(Inputs(first, last, spread, categories), outputs)
            for model, own in enumerate(scores):
                own.sums.zero_()
                loss = self._objective.loss_sum(outputs[model], labels)
                own.update(outputs[model], labels, loss)
                sums[model].append(own.sums.cpu())
        return [self._computed(own, parts) for own, parts in zip(scores, sums, strict=True)]

    def _computed(self, scores: Scores, sums: list[Tensor]) -> dict[str, float]:
        scores.load(scores.counts.cpu(), torch.stack(sums).sum(0))
        computed = scores.compute()
        return {name: computed[name] for name in metric_names(self._objective.kind)}

    def _pieces(self) -> Iterator[Piece]:
        if self._held is not None:
            yield from self._held
            return
        a_row = sum(array.nbytes for array in self._rows.empty(1).values())
        held: list[Piece] | None = [] if a_row * self._rows.rows <= HELD_BYTES else None
        for start in range(0, self._rows.rows, PIECE_ROWS):
            piece = self._piece(start, min(start + PIECE_ROWS, self._rows.rows))
            if held is not None:
                held.append(piece)
            yield piece
        self._held = held

    def _piece(self, start: int, stop: int) -> Piece:
        arrays = self._rows.empty(stop - start)
        self._rows.read(start, stop, arrays, 0)
        columns = {name: torch.from_numpy(a).to(self._device) for name, a in arrays.items()}
        features = columns["features"]
        if self._ones:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        return features, columns.get("categories"), columns["label"]
