"""Which settings a search tries next: asked for in groups, told the scores.

A search is repeatable because three things hold here: trials are numbered as they are asked for;
scores are passed on in the order of these numbers, whichever trial finished first; and no trial is
asked for while scores of earlier ones are missing. So a stopped search needs no saved sampler: ask
again, tell the recorded scores instead of training, and the next trials are those that would have
come. ::

    sampler = sampler_of(search, better)
    for group in groups(...):                    # ddlflow.sweep.choose.halving
        for trial in sampler.ask(group.size):
            sampler.tell(trial.number, score)    # in any order; None: it failed
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import Search, SearchRange
from ddlflow.sweep.choose.space import Point, drawn, num_points, points

if TYPE_CHECKING:
    import optuna

Better = Literal["higher", "lower"]
NO_CMAES = (
    "search.method is cma_es, which needs the package cmaes. Install it (pip install cmaes), or "
    "set search.method to tpe."
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of the search: its number, from 0 on, and its values by dotted name."""

    number: int
    values: Point


class Sampler(Protocol):
    """What a driver asks and tells."""

    num_trials: int  # that the search has, unless its time ends first

    def ask(self, number: int) -> list[Trial]:
        """The next trials; fewer, or none, where the search has no more."""
        ...

    def tell(self, number: int, score: float | None, pruned_after: int | None = None) -> None:
        """The score of a trial; None, or one that is not finite, where it failed.

        Args:
            number: of the trial.
            score: by the search's metric; of a pruned trial, the last that it had.
            pruned_after: the epochs after which it was ended, if it was.
        """
        ...


def sampler_of(search: Search, better: Better) -> Sampler:
    """The sampler of a search's method.

    Raises:
        SpecError: the method is cma_es, and the package that it needs is not installed.
    """
    if search.method == "cma_es" and find_spec("cmaes") is None:
        raise SpecError(NO_CMAES)
    if search.method == "grid":
        grid = list(points(search.space))
        return _Known(len(grid), grid.__getitem__)
    if search.method == "forward":
        return Forward(search, better)
    assert search.trials is not None
    if search.method == "random":
        return _Known(search.trials, lambda number: random_point(search, number))
    return _Optuna(search, better)


def random_point(search: Search, number: int) -> Point:
    """The values of one random trial: of the seed and its number alone, whatever came before."""
    generator = np.random.Generator(np.random.Philox(key=[search.seed, number]))

    def draw(_: str, one: SearchRange) -> Any:
        if one.values is not None:
            return one.values[int(generator.integers(len(one.values)))]
        if one.whole and not one.log:
            return int(generator.integers(int(one.low), int(one.high), endpoint=True))
        # Each whole number has the part of the (logarithmic) line that rounds to it.
        reach = 0.5 if one.whole else 0.0
        low, high = one.low - reach, one.high + reach
        if one.log:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = float(generator.uniform(low, high))
        value = min(max(value, one.low), one.high)  # exp(log(x)) may be a last bit beyond
        return round(value) if one.whole else value

    return drawn(search.space, draw)


class _Known:
    """Trials that are functions of their numbers: scores change nothing."""

    def __init__(self, num_trials: int, point: Callable[[int], Point]) -> None:
        self.num_trials = num_trials
        self._point, self._next = point, 0

    def ask(self, number: int) -> list[Trial]:
        first, self._next = self._next, min(self._next + number, self.num_trials)
        return [Trial(k, self._point(k)) for k in range(first, self._next)]

    def tell(self, number: int, score: float | None, pruned_after: int | None = None) -> None:
        assert 0 <= number < self._next, f"trial {number} was not asked for"


class Forward:
    """Forward selection: a list grows by the value that makes the score best, as long as one does.

    A round tries each value that is left beside those that were taken.
    """

    def __init__(self, search: Search, better: Better) -> None:
        ((self._name, one),) = search.space.items()
        assert one.values is not None
        self._values, self._sign = one.values, 1 if better == "higher" else -1
        self.num_trials = total_trials(search)
        self._taken: list[Any] = []
        self._best = -math.inf
        self._next = 0
        self._tried: dict[int, list[Any]] = {}  # of the round
        self._scores: dict[int, float | None] = {}

    def ask(self, number: int) -> list[Trial]:
        assert self._scores.keys() == self._tried.keys(), "scores of trials are missing"
        if self._tried and not self._take():
            return []
        left = [value for value in self._values if value not in self._taken][:number]
        lists = [[*self._taken, value] for value in left]
        self._tried, self._scores = dict(enumerate(lists, self._next)), {}
        self._next += len(lists)
        return [Trial(k, {self._name: values}) for k, values in self._tried.items()]

    def tell(self, number: int, score: float | None, pruned_after: int | None = None) -> None:
        assert number in self._tried.keys() - self._scores.keys(), f"trial {number} waits for none"
        self._scores[number] = score

    def _take(self) -> bool:
        """Takes the best list of the round; whether it is better than the one before."""
        known = {k: score for k, score in self._scores.items() if score is not None}
        found = {k: self._sign * s for k, s in known.items() if math.isfinite(s)}
        best = min(found, key=lambda k: (-found[k], k), default=None)
        if best is None or found[best] <= self._best:
            return False
        self._best, self._taken = found[best], self._tried[best]
        return True


class _Optuna:
    """Optuna's TPE and CMA-ES with their own defaults.

    Source: J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011); N. Hansen,
    "The CMA Evolution Strategy: A Tutorial" (2016); as Optuna 5 has them.
    """

    def __init__(self, search: Search, better: Better) -> None:
        import optuna
        from optuna.study import StudyDirection

        assert search.trials is not None
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a line a trial, otherwise
        if search.method == "tpe":
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=search.seed)
        else:
            sampler = optuna.samplers.CmaEsSampler(
                seed=search.seed, warn_independent_sampling=False
            )
        direction = StudyDirection.MAXIMIZE if better == "higher" else StudyDirection.MINIMIZE
        self.num_trials = search.trials
        self._search = search
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        self._asked: dict[int, optuna.Trial] = {}  # and not all told yet
        self._told: dict[int, tuple[float | None, int | None]] = {}
        self._next = 0

    def ask(self, number: int) -> list[Trial]:
        assert not self._asked, f"scores of trials {sorted(self._asked)} are missing"
        first, self._next = self._next, min(self._next + number, self.num_trials)
        trials = []
        for k in range(first, self._next):
            asked = self._study.ask()
            assert asked.number == k
            self._asked[k] = asked
            values = drawn(self._search.space, lambda name, one, a=asked: _suggest(a, name, one))  # type: ignore[misc]
            trials.append(Trial(k, values))
        return trials

    def tell(self, number: int, score: float | None, pruned_after: int | None = None) -> None:
        assert number in self._asked.keys() - self._told.keys(), f"trial {number} waits for none"
        self._told[number] = (score, pruned_after)
        if len(self._told) < len(self._asked):
            return
        for k in sorted(self._asked):
            self._pass_on(self._asked[k], *self._told[k])
        self._asked.clear()
        self._told.clear()

    def _pass_on(
        self, trial: "optuna.Trial", score: float | None, pruned_after: int | None
    ) -> None:
        from optuna.trial import TrialState

        if score is None or not math.isfinite(score):
            self._study.tell(trial, state=TrialState.FAIL)
        elif pruned_after is not None:
            trial.report(score, pruned_after)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score)


def _suggest(trial: "optuna.Trial", name: str, one: SearchRange) -> Any:
    """Optuna's choice for one setting; of listed values it sees the positions (any type goes)."""
    if one.values is not None:
        return one.values[trial.suggest_categorical(name, range(len(one.values)))]
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


def total_trials(search: Search) -> int:
    """How many trials a search has, unless its time ends first."""
    if search.method == "forward":
        values = len(next(iter(search.space.values())).values or ())
        all_rounds = values * (values + 1) // 2
        return min(search.trials or all_rounds, all_rounds)
    return search.trials if search.trials is not None else num_points(search.space)
