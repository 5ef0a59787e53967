"""Which trials go on: successive halving and Hyperband on whole rungs, and Optuna's async form.

Pure functions of numbers. The synchronous forms decide when all trials of a rung have a score, so
the trials that go on do not depend on which was faster. `goes_on`, the asynchronous form, decides
about each as it arrives: no worker waits, but two searches may differ.

Source: K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification" (AISTATS 2016); L. Li et
al., "Hyperband" (JMLR 18, 2018), algorithm 1; L. Li et al., "A System for Massively Parallel
Hyperparameter Tuning" (MLSys 2020) for the asynchronous form.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ddlflow.spec.pipeline import Pruning, Search

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class TrialGroup:
    """Trials that are asked for at once, and the epochs after which some of them end.

    Attributes:
        first: the number of its first trial; the others follow.
        size: how many trials.
        rungs: epochs, rising; the last is the whole training. After each of the others, `keep`
            says who goes on (after async_halving's, `goes_on`).
    """

    first: int
    size: int
    rungs: tuple[int, ...]


def groups(search: Search, num_trials: int, epochs: int) -> list[TrialGroup]:
    """The whole plan of a search: known before its first trial, whatever the workers.

    Scores steer what tpe and cma_es ask for, so they ask for `together` trials at once. What grid
    and random try is known before: one group. Each bracket of Hyperband is a group for all.

    Args:
        search: the section.
        num_trials: that it has.
        epochs: of a whole training.
    """
    pruning = search.pruning
    if pruning and pruning.use == "hyperband":
        return list(_dealt(brackets(pruning, epochs), num_trials))
    steps: tuple[int, ...] = (epochs,)
    if pruning:
        made = rungs if pruning.use == "halving" else async_rungs
        steps = made(pruning.min_epochs, epochs, pruning.factor)
    if search.method == "forward":
        return list(_shrinking(search, num_trials, epochs))
    size = search.together if search.method in {"tpe", "cma_es"} else num_trials
    return [
        TrialGroup(first, min(size, num_trials - first), steps)
        for first in range(0, num_trials, size)
    ]


def _shrinking(search: Search, num_trials: int, epochs: int) -> Iterator[TrialGroup]:
    """What forward tries in turn: each of the values that are left."""
    first, left = 0, len(next(iter(search.space.values())).values or ())
    while first < num_trials:
        size = min(left, num_trials - first)
        yield TrialGroup(first, size, (epochs,))
        first, left = first + size, left - 1


def rungs(min_epochs: int, max_epochs: int, factor: int) -> tuple[int, ...]:
    """The epochs of each rung, the last being ``max_epochs``.

    They are the whole training divided by powers of ``factor``, rounded down, and none is below
    ``min_epochs``: ``rungs(1, 10, 3)`` is (1, 3, 10).
    """
    assert 1 <= min_epochs <= max_epochs
    assert factor >= 2
    found = [max_epochs]
    power = factor
    while max_epochs // power >= min_epochs:
        found.append(max_epochs // power)
        power *= factor
    return tuple(reversed(found))


def num_kept(entered: int, factor: int) -> int:
    """How many of a rung's trials go on: one in ``factor``, at least one of any."""
    return min(entered, max(1, entered // factor))


def keep(scores: Mapping[int, float | None], factor: int, better: Better) -> list[int]:
    """The trials that go on to the next rung.

    Args:
        scores: of every trial that entered the rung, by number; None or not finite where it failed.
            The order in which they came does not matter.
        factor: of so many, one goes on.
        better: which scores are.

    Returns:
        Numbers, rising; of equal scores the lower number goes on. Failed trials never do, and they
        leave no place to others that would have ended had they not failed.
    """
    sign = -1 if better == "higher" else 1
    sound = [(sign * s, n) for n, s in scores.items() if s is not None and math.isfinite(s)]
    return sorted(number for _, number in sorted(sound)[: num_kept(len(scores), factor)])


def brackets(pruning: Pruning, epochs: int) -> list[tuple[int, tuple[int, ...]]]:
    """Hyperband's brackets as (trials, rungs): from many short ones to a few whole trainings."""
    steps = rungs(pruning.min_epochs, epochs, pruning.factor)
    number = len(steps)
    return [
        (-(-number * pruning.factor**s // (s + 1)), steps[number - 1 - s :])
        for s in reversed(range(number))
    ]


def _dealt(
    brackets: Sequence[tuple[int, tuple[int, ...]]], num_trials: int
) -> Iterator[TrialGroup]:
    """Brackets in turn, and again, until every trial has its place; the last may be smaller."""
    first = 0
    while first < num_trials:
        for size, steps in brackets:
            left = num_trials - first
            if left:
                yield TrialGroup(first, min(size, left), steps)
            first += min(size, left)


def async_rungs(min_epochs: int, max_epochs: int, factor: int) -> tuple[int, ...]:
    """The rungs of the asynchronous form, which count up from ``min_epochs`` as Optuna's do."""
    found = []
    step = min_epochs
    while step < max_epochs:
        found.append(step)
        step *= factor
    return (*found, max_epochs)


def goes_on(score: float | None, earlier: Sequence[float], factor: int, better: Better) -> bool:
    """Whether a trial goes on beyond a rung, by those that reached it before: not repeatable.

    It does if it is among the best ``1 / factor`` of all that have arrived, or, of fewer than
    ``factor``, the best: the rule of ``optuna.pruners.SuccessiveHalvingPruner``.

    Args:
        score: at this rung; None or not finite where it failed.
        earlier: the scores of all that reached the rung before, ended since or not.
        factor: of so many, about one goes on.
        better: which scores are.
    """
    if score is None or not math.isfinite(score):
        return False
    arrived = sorted([*earlier, score], reverse=better == "higher")
    worst = arrived[max(1, len(arrived) // factor) - 1]
    return score >= worst if better == "higher" else score <= worst
