"""From the streams of a stack to its steps: chunks of rows, cut into batches for runs of models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddlflow.sweep.fused.program import Inputs, Step
from ddlflow.sweep.fused.streams import Part, Stream

# Rows that are gathered at a time, over all streams: enough that what is done once a chunk weighs
# nothing, and few enough to stay in the cache.
CHUNK_ROWS = 32_768
# With fewer models a stream than this, each model's rows are laid side by side: one call for all
# models instead of one a stream.
FEW = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """What comes next in an epoch: ``steps`` batches of ``rows`` for the models [first, last)."""

    first: int
    last: int
    steps: int
    rows: int


@dataclass(slots=True)
class Feed:
    """The runs of a stack's models that share a stream, and how far each is in the epoch.

    Attributes:
        streams: of each run, those with most rows first.
        sizes: models of each run.
        batch_rows: of a batch; the last one of an epoch is shorter.
        taken: rows that each run has had in this epoch.
    """

    streams: list[Stream]
    sizes: list[int]
    batch_rows: int
    taken: list[int]

    def begin(self, epoch: int) -> None:
        """Goes to the first row of an epoch (from 0)."""
        for stream in self.streams:
            stream.begin(epoch)
        self.taken = [0] * len(self.streams)

    def turn(self) -> Turn | None:
        """The next batches of one size; None at the epoch's end.

        Runs with fewer rows end sooner: those before them go on, and at last each has its short
        batch, together with the runs that have the same.
        """
        left = [s.rows - taken for s, taken in zip(self.streams, self.taken, strict=True)]
        full = [rows // self.batch_rows for rows in left]
        first, last, rows, steps = 0, 0, self.batch_rows, 0
        if any(full):
            while last < len(full) and full[last]:
                last += 1
            chunk = max(CHUNK_ROWS // last, 2048) // rows
            steps = max(1, min(*full[:last], chunk) if last > 1 else min(full[0], chunk))
        elif any(left):
            first = next(run for run, rest in enumerate(left) if rest)
            last, rows, steps = first + 1, left[first], 1
            while last < len(left) and left[last] == rows:
                last += 1
        else:
            return None
        edges = [sum(self.sizes[:run]) for run in (first, last)]
        return Turn(edges[0], edges[1], steps, rows)

    def take(self, turn: Turn, outputs: Tensor) -> list[Step]:
        """The batches of a turn, one after the other.

        Args:
            turn: the one that is due.
            outputs: to be filled, [models, rows of all steps (, outputs)].
        """
        parts: list[tuple[int, int, Part]] = []
        at = 0
        for run, size in enumerate(self.sizes):
            if turn.first <= at < turn.last:
                parts.append((at, at + size, self.streams[run].take(turn.steps * turn.rows)))
                self.taken[run] += turn.steps * turn.rows
            at += size
        labels = torch.cat([part.label.expand(stop - start, -1) for start, stop, part in parts])
        inputs = self._inputs(turn, parts)
        cut_labels, cut_outputs = (
            torch.split(labels, turn.rows, 1),
            torch.split(outputs, turn.rows, 1),
        )
        cuts = [
            (
                part.first,
                part.last,
                torch.split(part.features, turn.rows, 1),
                None if part.categories is None else torch.split(part.categories, turn.rows),
            )
            for part in inputs
        ]
        return [
            Step(
                turn.first,
                turn.last,
                [Inputs(a, b, x[k], None if c is None else c[k]) for a, b, x, c in cuts],
                cut_labels[k],
                cut_outputs[k],
            )
            for k in range(turn.steps)
        ]

    def _inputs(self, turn: Turn, parts: list[tuple[int, int, Part]]) -> list[Inputs]:
        spread = [part.features.expand(stop - start, -1, -1) for start, stop, part in parts]
        few = len(parts) > 1 and turn.last - turn.first < FEW * len(parts)
        if few and parts[0][2].categories is None:
            return [Inputs(turn.first, turn.last, torch.cat(spread), None)]
        return [
            Inputs(start, stop, features, part.categories)
            for (start, stop, part), features in zip(parts, spread, strict=True)
        ]
