"""What a search tries next: repeatable, in any order of finishing, and as good as plain Optuna."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import optuna
import pytest

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import Search
from ddlflow.sweep.choose import sampler as sampler_
from ddlflow.sweep.choose.sampler import Sampler, Trial, random_point, sampler_of, total_trials

SPACE = {
    "x": {"uniform": [-5, 5]},
    "rate": {"log_uniform": [1e-5, 1]},
    "rows": {"int": [1, 64], "log": True},
    "layers": {"int": [1, 4]},
    "kind": ["a", "b", "c"],
}
NUMBERS = {name: one for name, one in SPACE.items() if name != "kind"}
CONDITIONS = {
    "use": ["one", "two"],
    "inner": {"uniform": [0, 1], "when": {"use": "two"}},
    "sizes": [[1], [2, 3]],
}
CMA_ES = pytest.mark.skipif(find_spec("cmaes") is None, reason="the package cmaes is not installed")


def search(method: str, space: dict[str, Any] = SPACE, **more: Any) -> Search:
    return Search.model_validate({"method": method, "space": space, "trials": 60, **more})


def bowl(values: dict[str, Any]) -> float:
    """Least where x is 1.5, rate 1e-2, rows 16, layers 3 and kind b: 0."""
    return (
        (values["x"] - 1.5) ** 2
        + math.log10(values["rate"] / 1e-2) ** 2
        + math.log2(values["rows"] / 16) ** 2 / 4
        + (values["layers"] - 3) ** 2 / 4
        + (values.get("kind", "b") != "b")
    )


def conditional(values: dict[str, Any]) -> float:
    return abs(values.get("inner", 2) - 0.3) + len(values["sizes"])


def played(
    sampler: Sampler,
    score: Callable[[dict[str, Any]], float | None] = bowl,
    together: int = 1,
    finish: Callable[[list[Trial]], Sequence[Trial]] = lambda trials: trials,
) -> list[Trial]:
    """All trials of a search whose groups finish in the order that ``finish`` gives."""
    seen = []
    while asked := sampler.ask(together):
        seen += asked
        for trial in finish(asked):
            sampler.tell(trial.number, score(trial.values))
    return seen


METHODS = ["random", "tpe", pytest.param("cma_es", marks=CMA_ES)]


# ---- what needs no scores -------------------------------------------------------------------


def test_a_grid_is_asked_in_order() -> None:
    grid = Search(method="grid", space={"a": [1, 2], "b": ["x", "y", "z"]})  # type: ignore[dict-item]
    trials = played(sampler_of(grid, "higher"), lambda _: None, together=4)
    assert [trial.number for trial in trials] == list(range(6))
    assert [tuple(trial.values.values()) for trial in trials] == list(
        itertools.product([1, 2], ["x", "y", "z"])
    )
    assert total_trials(grid) == 6
    assert total_trials(search("random")) == 60


def test_a_random_trial_depends_on_seed_and_number_alone() -> None:
    one = played(sampler_of(search("random"), "lower"), together=1)
    seven = played(sampler_of(search("random"), "higher"), lambda _: None, together=7)
    assert one == seven
    assert random_point(search("random"), 41) == one[41].values
    other = played(sampler_of(search("random", seed=8), "lower"))
    assert not any(a.values["x"] == b.values["x"] for a, b in zip(one, other, strict=True))


def test_random_numbers_fill_their_ranges() -> None:
    wide = search("random", trials=4000)
    values = [random_point(wide, number) for number in range(4000)]
    mean = {name: sum(v[name] for v in values) / 4000 for name in ("x", "layers")}
    assert mean["x"] == pytest.approx(0, abs=0.2)  # standard error: 10 / sqrt(12 * 4000) = 0.05
    assert mean["layers"] == pytest.approx(2.5, abs=0.08)
    assert sum(v["rate"] < 10**-2.5 for v in values) == pytest.approx(2000, abs=150)
    assert {v["layers"] for v in values} == {1, 2, 3, 4}
    assert {v["kind"] for v in values} == {"a", "b", "c"}
    rows = [v["rows"] for v in values]
    assert (min(rows), max(rows), {type(r) for r in rows}) == (1, 64, {int})
    # On a line from log(0.5) to log(64.5), 1 has the part that rounds to it: log(3) / log(129).
    assert rows.count(1) == pytest.approx(4000 * math.log(3) / math.log(129), abs=120)


# ---- what learns from scores ----------------------------------------------------------------


def plain_optuna(trials: int, seed: int) -> list[dict[str, Any]]:
    """The trials of Optuna itself, as its documentation says to write them."""

    def objective(trial: optuna.Trial) -> float:
        values = {
            "x": trial.suggest_float("x", -5, 5),
            "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
            "rows": trial.suggest_int("rows", 1, 64, log=True),
            "layers": trial.suggest_int("layers", 1, 4),
            "kind": trial.suggest_categorical("kind", ["a", "b", "c"]),
        }
        return bowl(values)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_one_at_a_time_tpe_tries_what_plain_optuna_tries(seed: int) -> None:
    ours = played(sampler_of(search("tpe", seed=seed), "lower"))
    assert [trial.values for trial in ours] == plain_optuna(60, seed)


def test_tpe_beats_random() -> None:
    """The best of 60, averaged over five seeds; eight at a time costs little."""

    def mean(method: str, together: int) -> float:
        found = [
            min(
                bowl(trial.values)
                for trial in played(sampler_of(search(method, seed=s), "lower"), together=together)
            )
            for s in range(5)
        ]
        return sum(found) / 5

    chance = mean("random", 1)
    assert mean("tpe", 1) < chance / 2
    assert mean("tpe", 8) < chance / 2


def test_higher_and_lower_are_mirror_images() -> None:
    lower = played(sampler_of(search("tpe"), "lower"), together=4)
    higher = played(sampler_of(search("tpe"), "higher"), lambda v: -bowl(v), together=4)
    assert lower == higher


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("together", [1, 8])
def test_the_order_of_finishing_does_not_matter(method: str, together: int) -> None:
    generator = random.Random(3)
    section = search(method, NUMBERS)
    in_order = played(sampler_of(section, "lower"), together=together)
    shuffled = played(
        sampler_of(section, "lower"),
        together=together,
        finish=lambda trials: generator.sample(trials, len(trials)),
    )
    assert in_order == shuffled
    assert len(in_order) == 60


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stopped_after", [1, 16, 37])
def test_a_stopped_search_goes_on_by_telling_its_scores_again(
    method: str, stopped_after: int
) -> None:
    """Killed in the middle of a group: what was scored is told again, the rest is trained."""
    section = search(method, NUMBERS)

    def score(values: dict[str, Any]) -> float | None:
        return None if values["layers"] == 2 else bowl(values)  # some trials fail

    whole = played(sampler_of(section, "lower"), score, together=8)
    recorded = {trial.number: score(trial.values) for trial in whole[:stopped_after]}
    trained = []
    sampler = sampler_of(section, "lower")
    again = []
    while asked := sampler.ask(8):
        again += asked
        for trial in asked:
            if trial.number not in recorded:
                trained.append(trial.number)
                recorded[trial.number] = score(trial.values)
            sampler.tell(trial.number, recorded[trial.number])
    assert again == whole
    assert trained == list(range(stopped_after, 60))


def test_pruned_trials_tell_what_they_had() -> None:
    """A worse score after more epochs counts for more than a better one after fewer."""
    section = search("tpe", {"x": {"uniform": [0, 1]}}, trials=40)

    def end(pruned: bool) -> float:
        sampler = sampler_of(section, "lower")
        late = []
        while asked := sampler.ask(1):
            (trial,) = asked
            x = trial.values["x"]
            if pruned and x > 0.5:
                sampler.tell(trial.number, x - 10, pruned_after=1)  # great, but after one epoch
            else:
                sampler.tell(trial.number, x)
            late.append(x)
        return sum(late[20:]) / 20

    assert end(pruned=True) < 0.35
    assert end(pruned=False) < 0.35


def test_conditions_and_values_of_any_type() -> None:
    for method in ("random", "tpe"):
        trials = played(sampler_of(search(method, CONDITIONS), "lower"), conditional, together=4)
        assert all(("inner" in t.values) == (t.values["use"] == "two") for t in trials)
        assert {tuple(t.values["sizes"]) for t in trials} == {(1,), (2, 3)}
        assert next(iter(trials[0].values)) == "use"


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_what_failed_teaches_nothing(score: float | None) -> None:
    """Trials that fail are no evidence for TPE, so all are random until ten have a score."""
    section = search("tpe", NUMBERS, trials=30)
    failing = played(sampler_of(section, "lower"), lambda _: score)
    also = played(sampler_of(section, "higher"), lambda _: None)
    assert failing == also


def test_no_trial_is_asked_for_while_scores_are_missing() -> None:
    sampler = sampler_of(search("tpe"), "lower")
    sampler.ask(2)
    sampler.tell(1, 0.5)
    with pytest.raises(AssertionError, match=r"scores of trials \[0, 1\] are missing"):
        sampler.ask(1)
    with pytest.raises(AssertionError, match="trial 1 waits for none"):
        sampler.tell(1, 0.5)


@CMA_ES
def test_cma_es_finds_the_least() -> None:
    section = search("cma_es", {"x": SPACE["x"], "rate": SPACE["rate"]}, trials=150)

    def score(values: dict[str, Any]) -> float:
        return bowl(values | {"rows": 16, "layers": 3})

    trials = played(sampler_of(section, "lower"), score, together=6)
    assert min(score(trial.values) for trial in trials) < 0.01


def test_cma_es_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"needs the package cmaes\. Install it \(pip install cma"):
        sampler_of(search("cma_es", NUMBERS), "lower")
