"""A whole search as a driver plays it: the same whatever finishes first, and after any stop."""

import math
import random
from typing import Any

import pytest

from ddlflow.spec.pipeline import Search
from ddlflow.sweep.choose.halving import groups, keep
from ddlflow.sweep.choose.sampler import Trial, sampler_of
from ddlflow.sweep.choose.table import Outcome, best, rows

EPOCHS = 9
SPACE = {
    "rate": {"log_uniform": [1e-5, 1]},
    "kind": ["a", "b"],
    "width": {"int": [1, 9], "when": {"kind": "b"}},
}
Done = dict[tuple[int, int], float | None]  # (trial, epochs) -> score


def trained(trial: Trial, epochs: int) -> float | None:
    """The score of a trial after some epochs; a few fail."""
    if trial.number % 11 == 5:
        return None
    rate = 1 - abs(math.log10(trial.values["rate"]) + 2) / 5
    return rate + trial.values.get("width", 0) / 50 - 0.3 / epochs


def play(search: Search, done: Done, order: random.Random, most: float = math.inf) -> list[Any]:
    """Plays a search; trainings are looked up in ``done``, and end after ``most`` new ones."""
    sampler, outcomes, new = sampler_of(search, "higher"), [], 0
    for group in groups(search, sampler.num_trials, EPOCHS):
        trials = {trial.number: trial for trial in sampler.ask(group.size)}
        alive, last = list(trials), dict.fromkeys(trials, 0)
        scores: dict[int, float | None] = {}
        for rung in group.rungs:
            for number in order.sample(alive, len(alive)):  # as its workers happen to finish
                if (number, rung) not in done:
                    if new == most:
                        return []  # killed
                    new += 1
                    done[number, rung] = trained(trials[number], rung)
                scores[number], last[number] = done[number, rung], rung
            if rung != group.rungs[-1]:
                assert search.pruning is not None
                alive = keep({n: scores[n] for n in alive}, search.pruning.factor, "higher")
        for number in order.sample(list(trials), len(trials)):
            score, ended = scores[number], last[number] < EPOCHS
            sampler.tell(number, score, last[number] if ended else None)
            status = "failed" if score is None else "pruned" if ended else "done"
            kept = () if score is None else (score,)
            outcomes.append(
                Outcome(number, trials[number].values, status, kept, 0.0, last[number])  # type: ignore[arg-type]
            )
    winner = best(outcomes, "higher")
    assert winner is not None
    return [winner.number, rows(outcomes)]


def section(method: str, pruning: str | None) -> Search:
    values = {"method": method, "space": SPACE, "trials": 40}
    return Search.model_validate(values | ({"pruning": {"use": pruning}} if pruning else {}))


CASES = [(m, p) for m in ("random", "tpe") for p in (None, "halving", "hyperband")]


@pytest.mark.parametrize(("method", "pruning"), CASES)
def test_the_same_search_in_any_order_of_finishing(method: str, pruning: str | None) -> None:
    search = section(method, pruning)
    once, again = (play(search, {}, random.Random(seed)) for seed in (1, 2))
    assert once == again
    statuses = {row.status for row in once[1]}
    assert statuses == ({"done", "failed", "pruned"} if pruning else {"done", "failed"})
    assert len(once[1]) == 40


@pytest.mark.parametrize(("method", "pruning"), CASES)
def test_a_search_that_is_killed_ten_times_ends_with_the_same(
    method: str, pruning: str | None
) -> None:
    search, order = section(method, pruning), random.Random(3)
    whole_done: Done = {}
    whole = play(search, whole_done, order)
    done: Done = {}
    for _ in range(10):
        assert play(search, done, order, most=len(whole_done) // 11) == []
    assert play(search, done, order) == whole
    assert done == whole_done  # and not one training more
