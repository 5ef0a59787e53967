"""Rungs, brackets and who goes on: properties, and the same decisions as Optuna's pruner."""

import itertools
import math
import random
from typing import Any, Literal

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.spec.pipeline import Pruning, Search
from ddlflow.sweep.choose.halving import (
    TrialGroup,
    async_rungs,
    brackets,
    goes_on,
    groups,
    keep,
    num_kept,
    rungs,
)

Better = Literal["higher", "lower"]
SCORES = st.dictionaries(
    st.integers(0, 200),
    st.none() | st.floats(-10, 10) | st.sampled_from([0.5, math.nan, math.inf]),
    min_size=1,
    max_size=60,
)
FACTORS = st.integers(2, 5)
BETTER = st.sampled_from(["higher", "lower"])


def sound(scores: dict[int, float | None]) -> dict[int, float]:
    return {n: s for n, s in scores.items() if s is not None and math.isfinite(s)}


@pytest.mark.parametrize(
    ("least", "most", "factor", "expected"),
    [
        (1, 10, 3, (1, 3, 10)),
        (1, 81, 3, (1, 3, 9, 27, 81)),
        (2, 81, 3, (3, 9, 27, 81)),
        (1, 2, 3, (2,)),
        (1, 3, 3, (1, 3)),
        (5, 5, 2, (5,)),
        (1, 1, 2, (1,)),
    ],
)
def test_rungs(least: int, most: int, factor: int, expected: tuple[int, ...]) -> None:
    assert rungs(least, most, factor) == expected


@given(st.integers(1, 50), st.integers(0, 500), FACTORS)
def test_rungs_rise_by_the_factor_up_to_the_whole_training(
    least: int, more: int, factor: int
) -> None:
    for made in (rungs, async_rungs):
        found = made(least, least + more, factor)
        assert found[-1] == least + more
        assert found[0] >= least
        assert all(one < other for one, other in itertools.pairwise(found))
    steps = rungs(least, least + more, factor)
    assert all(one == (least + more) // factor**k for k, one in enumerate(reversed(steps)))
    assert (least + more) // factor ** len(steps) < least  # none is left out


@given(SCORES, FACTORS, BETTER)
def test_how_many_are_kept(scores: dict[int, float | None], factor: int, better: Better) -> None:
    kept = keep(scores, factor, better)
    assert len(kept) == min(len(sound(scores)), num_kept(len(scores), factor))
    assert kept == sorted(set(kept))
    assert set(kept) <= set(sound(scores))


@given(SCORES, FACTORS, BETTER, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    scores: dict[int, float | None], factor: int, better: Better, shuffle: random.Random
) -> None:
    arrived = list(scores.items())
    shuffle.shuffle(arrived)
    assert keep(dict(arrived), factor, better) == keep(scores, factor, better)


@given(SCORES, FACTORS, BETTER)
def test_nobody_who_ends_is_better_than_one_who_goes_on(
    scores: dict[int, float | None], factor: int, better: Better
) -> None:
    kept, sign = set(keep(scores, factor, better)), -1 if better == "higher" else 1
    ended = [(sign * s, n) for n, s in sound(scores).items() if n not in kept]
    if kept and ended:
        assert max((sign * sound(scores)[n], n) for n in kept) < min(ended)  # ties: by number


@given(SCORES, FACTORS, BETTER, st.floats(0, 5))
def test_a_better_score_is_never_ended_for_it(
    scores: dict[int, float | None], factor: int, better: Better, gain: float
) -> None:
    for number in keep(scores, factor, better):
        raised = (scores[number] or 0.0) + (gain if better == "higher" else -gain)
        assert number in keep({**scores, number: raised}, factor, better)


@pytest.mark.parametrize(("entered", "kept"), [(0, 0), (1, 1), (2, 1), (3, 1), (5, 1), (27, 9)])
def test_one_in_three_goes_on_and_at_least_one(entered: int, kept: int) -> None:
    assert num_kept(entered, 3) == kept


def test_when_all_failed_nobody_goes_on() -> None:
    assert keep({0: None, 1: math.nan}, 3, "higher") == []


def test_the_brackets_of_the_papers_table() -> None:
    """Li et al., table 1: R = 81, eta = 3."""
    found = brackets(Pruning(use="hyperband", min_epochs=1, factor=3), 81)
    assert found == [
        (81, (1, 3, 9, 27, 81)),
        (34, (3, 9, 27, 81)),
        (15, (9, 27, 81)),
        (8, (27, 81)),
        (5, (81,)),
    ]


def search(method: str, pruning: str | None = None, **more: Any) -> Search:
    space = {"train.optimizer.lr": [0.1] if method == "grid" else {"uniform": [0.1, 1]}}
    values: dict[str, Any] = {"method": method, "space": space} | more
    if method != "grid":
        values["trials"] = 30
    return Search.model_validate(values | ({"pruning": {"use": pruning}} if pruning else {}))


def test_what_is_known_before_is_one_group() -> None:
    for method in ("grid", "random"):
        assert groups(search(method), 30, 9) == [TrialGroup(0, 30, (9,))]
        assert groups(search(method, "halving"), 30, 9) == [TrialGroup(0, 30, (1, 3, 9))]


def test_what_learns_from_scores_asks_for_a_few_at_once() -> None:
    found = groups(search("tpe", together=12), 30, 9)
    assert found == [TrialGroup(0, 12, (9,)), TrialGroup(12, 12, (9,)), TrialGroup(24, 6, (9,))]
    assert groups(search("cma_es", "async_halving"), 8, 10) == [TrialGroup(0, 8, (1, 3, 9, 10))]


def test_hyperband_deals_trials_to_its_brackets_in_turn() -> None:
    found = groups(search("random", "hyperband"), 30, 9)
    assert found == [
        TrialGroup(0, 9, (1, 3, 9)),
        TrialGroup(9, 5, (3, 9)),
        TrialGroup(14, 3, (9,)),
        TrialGroup(17, 9, (1, 3, 9)),
        TrialGroup(26, 4, (3, 9)),
    ]


@given(
    st.sampled_from(["random", "tpe"]),
    st.sampled_from([None, "halving", "hyperband", "async_halving"]),
    st.integers(1, 200),
    st.integers(1, 100),
)
def test_every_trial_is_in_one_group(
    method: str, pruning: str | None, num_trials: int, epochs: int
) -> None:
    found = groups(search(method, pruning), num_trials, epochs)
    numbers = [n for group in found for n in range(group.first, group.first + group.size)]
    assert numbers == list(range(num_trials))
    assert all(group.rungs[-1] == epochs and group.size > 0 for group in found)


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_async_halving_decides_as_optuna_does(better: Better, factor: int) -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    study = optuna.create_study(
        direction="maximize" if better == "higher" else "minimize", pruner=pruner
    )
    generator = random.Random(factor)
    steps = async_rungs(1, 30, factor)[:-1]
    earlier: dict[int, list[float]] = {step: [] for step in steps}
    decisions = []
    for _ in range(60):
        trial = study.ask()
        for step in range(1, 31):
            score = generator.choice([generator.random(), 0.5])  # with ties
            trial.report(score, step)
            ends = trial.should_prune()
            if step in steps:
                on = goes_on(score, earlier[step], factor, better)
                earlier[step].append(score)
                assert on is not ends
                decisions.append(on)
            if ends:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, score)
    assert any(decisions)
    assert not all(decisions)


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_async_halving_ends_what_failed(score: float | None) -> None:
    assert not goes_on(score, [], 3, "higher")
