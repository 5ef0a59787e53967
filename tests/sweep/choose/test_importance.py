"""Which settings mattered: the one that moves the score, before those that do not."""

import math
import subprocess
import sys
from typing import Any

import pytest

from ddlflow.spec.pipeline import Search
from ddlflow.sweep.choose.importance import importances
from ddlflow.sweep.choose.sampler import random_point
from ddlflow.sweep.choose.table import Outcome

SPACE = {
    "rate": {"log_uniform": [1e-5, 1]},
    "rows": {"int": [1, 64]},
    "sizes": [[1], [2], [3, 4]],
    "use": ["a", "b"],
    "inner": {"uniform": [0, 1], "when": {"use": "b"}},
    "only": [3],
}


def outcomes(score: Any, number: int = 80) -> tuple[Search, list[Outcome]]:
    search = Search.model_validate({"method": "random", "space": SPACE, "trials": number})
    made = [(k, random_point(search, k)) for k in range(number)]
    return search, [Outcome(k, values, "done", (score(values),)) for k, values in made]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_moves_the_score_is_first(better: Any) -> None:
    sign = 1 if better == "lower" else -1
    search, made = outcomes(lambda v: sign * abs(math.log10(v["rate"]) + 2) + v["rows"] / 1e4)
    found = importances(search.space, made, better)
    assert next(iter(found)) == "rate"
    assert set(found) == {"rate", "rows", "sizes", "use", "inner"}
    assert found["rate"] > 0.5
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_list_of_values_can_matter_most() -> None:
    search, made = outcomes(lambda v: float(len(v["sizes"])))
    assert next(iter(importances(search.space, made, "higher"))) == "sizes"


def test_of_too_few_or_equal_scores_nothing_is_said() -> None:
    search, made = outcomes(lambda v: v["rate"])
    assert importances(search.space, made[:7], "higher") == {}
    search, made = outcomes(lambda _: 0.5)
    assert importances(search.space, made, "higher") == {}
    failed = [Outcome(o.number, o.values, "failed", reason="nan") for o in made]
    assert importances(search.space, failed, "higher") == {}


def test_it_needs_no_scikit_learn_and_no_scipy() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "from ddlflow.spec.pipeline import Search\n"
        "from ddlflow.sweep.choose.importance import importances\n"
        "from ddlflow.sweep.choose.sampler import sampler_of\n"
        "from ddlflow.sweep.choose.table import Outcome\n"
        "space = {'a': {'uniform': [0, 1]}, 'b': [1, 2]}\n"
        "search = Search.model_validate({'method': 'tpe', 'space': space, 'trials': 15})\n"
        "sampler, done = sampler_of(search, 'higher'), []\n"
        "for k in range(15):\n"
        "    (trial,) = sampler.ask(1)\n"
        "    sampler.tell(k, trial.values['a'])\n"
        "    done.append(Outcome(k, trial.values, 'done', (trial.values['a'],)))\n"
        "print(list(importances(search.space, done, 'higher'))[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["a"]
