"""A row a trial, and the best of them."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ddlflow.sweep.choose.table import Outcome, TrialRow, best, outcome_of, ranked, rows, spread

VALUES = {"train.optimizer.lr": 0.1, "model.hidden": [8, 4]}


def outcome(number: int, *scores: float, status: str = "done") -> Outcome:
    return Outcome(number, VALUES, status, scores)  # type: ignore[arg-type]


def test_a_row_a_trial() -> None:
    found = rows(
        [
            Outcome(1, VALUES, "failed", (0.5, math.nan), 1.5, 2, "loss is not finite"),
            Outcome(0, VALUES, "done", (0.5, 0.7, 0.9), 3.0, 5, None, 4.5, ((1, 0.4), (2, 0.7))),
        ]
    )
    assert [row.number for row in found] == [0, 1]
    assert found[0].score == pytest.approx(0.7)
    assert found[0].std == pytest.approx(0.2)
    assert found[0].stderr == pytest.approx(0.2 / math.sqrt(3))
    assert found[0].ended_s == 4.5
    assert found[0].curve == ((1, 0.4), (2, 0.7))
    assert asdict(found[1]) == {
        "number": 1,
        "values": VALUES,
        "status": "failed",
        "score": None,
        "std": None,
        "stderr": None,
        "scores": (0.5, None),
        "seconds": 1.5,
        "ended_s": None,
        "epochs": 2,
        "reason": "loss is not finite",
        "curve": (),
    }


NUMBERS = st.floats(-1e6, 1e6) | st.just(math.nan)


@given(
    st.lists(NUMBERS, max_size=5),
    st.lists(st.tuples(st.integers(1, 9), NUMBERS), max_size=4),
    st.sampled_from(["done", "pruned", "failed"]),
)
def test_json_brings_it_back(scores: list[float], curve: list[tuple[int, float]], status) -> None:
    given = Outcome(3, VALUES, status, tuple(scores), 1.25, 4, None, 2.5, tuple(curve))
    (row,) = rows([given])
    text = json.dumps(asdict(row), allow_nan=False)
    again = outcome_of(TypeAdapter(TrialRow).validate_python(json.loads(text)))
    assert repr(again) == repr(given)  # nan is not equal to itself


def test_the_best_by_score_and_then_by_number() -> None:
    found = [outcome(3, 0.9), outcome(1, 0.9), outcome(2, 0.4), outcome(0, math.nan)]
    assert [o.number for o in ranked(found, "higher")] == [1, 3, 2]
    assert [o.number for o in ranked(found, "lower")] == [2, 1, 3]
    winner = best(found, "higher")
    assert winner is not None
    assert winner.number == 1


@pytest.mark.parametrize(
    "others",
    [
        [outcome(1, 0.9, status="pruned")],
        [outcome(1, 0.9, status="failed")],
        [outcome(1, 0.9, math.inf)],
        [outcome(1)],
    ],
)
def test_only_a_whole_training_with_all_its_scores_can_win(others: list[Outcome]) -> None:
    winner = best([*others, outcome(2, 0.1)], "higher")
    assert winner is not None
    assert winner.number == 2
    assert best(others, "higher") is None


def test_spread_is_of_the_sample() -> None:
    assert spread([1, 2, 3, 4]) == pytest.approx((math.sqrt(5 / 3), math.sqrt(5 / 12)))
    assert spread([1]) == spread([]) == spread([1, math.nan]) == (None, None)
    assert spread([0.1, 0.1]) == (0, 0)
