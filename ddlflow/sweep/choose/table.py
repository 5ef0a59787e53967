"""What a search found: a row a trial, and the best of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ddlflow.sweep.choose.space import Point

Better = Literal["higher", "lower"]
Status = Literal["done", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trial.

    Attributes:
        number: of the trial.
        values: its settings by dotted name.
        status: done; pruned (ended early, with the scores that it had); failed.
        scores: by the search's metric, one a fold; a single one without folds.
        seconds: that its trainings took.
        ended_s: seconds from the start of the search to its end; none where that is not known.
        epochs: that it was trained for.
        reason: why it failed, in one line.
        curve: (epoch, score) after each epoch, for the plots.
    """

    number: int
    values: Point
    status: Status
    scores: tuple[float, ...] = ()
    seconds: float = 0.0
    epochs: int = 0
    reason: str | None = None
    ended_s: float | None = None
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def score(self) -> float | None:
        """The mean over the folds; none where one is missing or not finite, or it failed."""
        if self.status == "failed" or not self.scores or not all(map(math.isfinite, self.scores)):
            return None
        return math.fsum(self.scores) / len(self.scores)


def spread(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """Standard deviation (of the sample) and standard error of the mean; none of fewer than two.

    Folds share training rows, so the standard error is too small, if anything.
    Source: Y. Bengio, Y. Grandvalet, "No Unbiased Estimator of the Variance of K-Fold
    Cross-Validation" (JMLR 5, 2004).
    """
    if len(scores) < 2 or not all(map(math.isfinite, scores)):
        return None, None
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
    return std, std / math.sqrt(len(scores))


def best(outcomes: Iterable[Outcome], better: Better) -> Outcome | None:
    """The best trial that was trained to its end: of equal scores, the lower number."""
    return next(iter(ranked(outcomes, better)), None)


def ranked(outcomes: Iterable[Outcome], better: Better) -> list[Outcome]:
    """The trials that were trained to their end and scored, the best first."""
    sign = -1 if better == "higher" else 1
    scored = [(sign * o.score, o) for o in outcomes if o.status == "done" and o.score is not None]
    return [outcome for _, outcome in sorted(scored, key=lambda pair: (pair[0], pair[1].number))]


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A row of a search's table, as its file has it: JSON has no nan, so no score is None.

    Attributes:
        number: of the trial.
        values: its settings by dotted name.
        status: done, pruned or failed.
        score: the mean over the folds.
        std: standard deviation over the folds; None of fewer than two.
        stderr: standard error of the mean, likewise.
        scores: one a fold.
        seconds: that its trainings took.
        ended_s: seconds from the start of the search to its end.
        epochs: that it was trained for.
        reason: why it failed.
        curve: [epoch, score] after each epoch.
    """

    number: int
    values: Point
    status: Status
    score: float | None
    std: float | None
    stderr: float | None
    scores: tuple[float | None, ...]
    seconds: float
    ended_s: float | None
    epochs: int
    reason: str | None
    curve: tuple[tuple[int, float | None], ...]


def rows(outcomes: Iterable[Outcome]) -> list[TrialRow]:
    """The table of a search, by number."""
    table = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.number):
        std, stderr = spread(outcome.scores)
        table.append(
            TrialRow(
                number=outcome.number,
                values=dict(outcome.values),
                status=outcome.status,
                score=outcome.score,
                std=std,
                stderr=stderr,
                scores=tuple(s if math.isfinite(s) else None for s in outcome.scores),
                seconds=outcome.seconds,
                ended_s=outcome.ended_s,
                epochs=outcome.epochs,
                reason=outcome.reason,
                curve=tuple((e, s if math.isfinite(s) else None) for e, s in outcome.curve),
            )
        )
    return table


def outcome_of(row: TrialRow) -> Outcome:
    """The outcome that `rows` wrote; a score that is null is nan again."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return Outcome(
        number=row.number,
        values=dict(row.values),
        status=row.status,
        scores=tuple(number(score) for score in row.scores),
        seconds=row.seconds,
        ended_s=row.ended_s,
        epochs=row.epochs,
        reason=row.reason,
        curve=tuple((epoch, number(score)) for epoch, score in row.curve),
    )
