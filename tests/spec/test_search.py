"""The search section: how ranges are read, and one line for each thing that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ddlflow.errors import SpecError
from ddlflow.spec.load import load, parts_of
from ddlflow.spec.pipeline import Pipeline, Pruning, Search, SearchRange, Sweep

PIPELINE = """\
name: p
data: {source: t.parquet, label: y}
model: {use: mlp}
train: {objective: binary}
search:
"""


def load_with(search: dict[str, Any], folder: Path, *changes: str) -> Search:
    """The section as a file gives it: `space` begins in line 7."""
    lines = [f"  method: {search.get('method', 'random')}", "  space:"]
    space = search.get("space", {"train.optimizer.lr": [0.1]})
    one_line = {"default_flow_style": True, "width": 10_000}
    if isinstance(space, dict) and space:
        lines += [
            f"    {name}: {yaml.safe_dump(one, **one_line)}".removesuffix("...\n").rstrip()
            for name, one in space.items()
        ]
    rest = {k: v for k, v in search.items() if k not in {"method", "space"}}
    lines += [f"  {k}: {yaml.safe_dump(v, **one_line)}".split("\n")[0] for k, v in rest.items()]
    (folder / "p.yaml").write_text(PIPELINE + "\n".join(lines) + "\n")
    (folder / "s.yaml").write_text("{}\n")
    found = load(str(folder / "p.yaml"), str(folder / "s.yaml"), changes).pipeline.search
    assert found is not None
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FULL = {
    "method": "tpe",
    "trials": 20,
    "space": {
        "model.use": ["linear", "mlp"],
        "model.hidden": {"values": [[100], [200, 100]], "when": {"model.use": "mlp"}},
        "model.dropout": {"uniform": [0, 0.5], "when": {"model.use": ["mlp"]}},
        "train.optimizer.lr": [0.001, 0.01],
        "train.optimizer.weight_decay": {"log_uniform": [1e-6, 1e-2]},
        "train.batch_rows": {"int": [128, 4096], "log": True},
        "train.epochs": {"int": [1, 3]},
    },
    "pruning": {"use": "hyperband"},
}


def test_every_kind_of_range(here: Path) -> None:
    search = load_with(FULL, here)
    space = search.space
    assert list(space) == list(FULL["space"])  # type: ignore[call-overload] # the file's order
    assert space["train.optimizer.lr"].values == [0.001, 0.01]
    assert space["model.hidden"].values == [[100], [200, 100]]
    assert space["model.hidden"].when == {"model.use": "mlp"}
    decay = space["train.optimizer.weight_decay"]
    assert (decay.low, decay.high, decay.log, decay.whole) == (1e-6, 1e-2, True, False)
    rows = space["train.batch_rows"]
    assert (rows.ends, rows.log, rows.whole) == ([128, 4096], True, True)
    assert space["train.epochs"].listed == range(1, 4)
    assert decay.listed is None
    assert search.pruning == Pruning(use="hyperband", min_epochs=1, factor=3)
    assert (search.together, search.seed, search.cv, search.metric) == (8, 7, False, None)


def test_it_is_written_as_it_is_read(here: Path) -> None:
    load_with(FULL, here)
    pipeline = load(str(here / "p.yaml"), str(here / "s.yaml")).pipeline
    written = pipeline.model_dump(mode="json", by_alias=True)
    assert written["search"]["space"] == FULL["space"] | {
        "model.dropout": {"uniform": [0.0, 0.5], "when": {"model.use": ["mlp"]}}
    }
    text = yaml.safe_dump(written, sort_keys=False)  # as the record of a run is written
    assert Pipeline.model_validate(yaml.safe_load(text)) == pipeline
    assert pipeline.sweep == Sweep(fuse="auto")


def test_without_a_search_there_is_none() -> None:
    assert Pipeline.model_validate(yaml.safe_load(PIPELINE)).search is None


def test_set_reaches_into_the_space(here: Path) -> None:
    change = "search.space.train.optimizer.lr={uniform: [0.1, 0.2]}"
    space = load_with({"trials": 3}, here, change, "search.space.model.dropout=[0.5]").space
    assert space["train.optimizer.lr"] == SearchRange.model_validate({"uniform": [0.1, 0.2]})
    assert space["model.dropout"].values == [0.5]
    with pytest.raises(SpecError, match=r"^--set search.space.train.seed=3: search.space.train.se"):
        load_with({"trials": 3}, here, "search.space.train.seed=3")
    assert parts_of("search.space.train.seed") == ["search", "space", "train.seed"]
    assert parts_of("search.space") == ["search", "space"]
    assert parts_of("train.seed") == ["train", "seed"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the list of values is empty; give at least one value."),
        ({"values": []}, "the list of values is empty; give at least one value."),
        ({"values": 3}, "the list of values is 3; give at least one value."),
        (None, "it is empty; expected a list of values, {uniform: [0, 0.5]},"),
        (0.1, "it is 0.1; expected a list of values,"),
        ([0.1, 0.2, 0.1], "0.1 is listed twice. Remove one of them."),
        ([1, float("nan")], "nan is listed; expected finite numbers."),
        ({}, "it has no keys; expected a list of values,"),
        ({"uniformly": [0, 1]}, "it has uniformly; expected a list of values,"),
        ({"uniform": [0, 1], "int": [0, 1]}, "it has int, uniform; expected"),
        ({"uniform": [0, 1], "step": 2}, "it has step, uniform; expected"),
        ({"uniform": 3}, "uniform is 3; expected two numbers, [least, greatest]."),
        ({"uniform": [0, 1, 2]}, "uniform is [0, 1, 2]; expected two numbers"),
        ({"uniform": ["a", "b"]}, "uniform is ['a', 'b']; expected two numbers"),
        ({"uniform": [False, 1]}, "uniform is [False, 1]; expected two numbers"),
        ({"int": [0.5, 3]}, "int is [0.5, 3]; expected two whole numbers"),
        ({"uniform": [0, float("inf")]}, "uniform is [0, inf]; expected finite numbers."),
        ({"int": [0, 2**53 + 1]}, "int is [0, 9007199254740993]; expected numbers up to 2^53."),
        ({"uniform": [2, 1]}, "uniform runs from 2 to 1. Write the lower number first: [1, 2]."),
        (
            {"int": [3, 3]},
            "int runs from 3 to 3, a single value. Write [3], or a greater upper end",
        ),
        (
            {"log_uniform": [0, 1]},
            "log_uniform begins at 0, which has no logarithm. Begin above 0,",
        ),
        ({"log_uniform": [-1, 1]}, "log_uniform begins at -1, which has no logarithm."),
        ({"int": [0, 9], "log": True}, "int with log: true begins at 0, which has no logarithm."),
        (
            {"uniform": [1, 2], "log": True},
            "log is True; it is true or false, beside int. Write lo",
        ),
        ({"int": [1, 2], "log": "x"}, "log is 'x'; it is true or false, beside int."),
        ({"int": [1, 2], "when": "mlp"}, "when is 'mlp'; expected such as {model.use: mlp}."),
        ({"int": [1, 2], "when": {}}, "when is {}; expected such as {model.use: mlp}."),
    ],
)
def test_a_range_that_cannot_be(given: Any, said: str, here: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load_with({"trials": 3, "space": {"train.seed": [1], "train.batch_rows": given}}, here)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"p.yaml:9: search.space.train.batch_rows: {said}")


LR = {"train.optimizer.lr": [0.1]}
CHOICE = {"model.use": ["linear", "mlp"]}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"trials": 1, "space": {}}, "search.space: it is empty. Name at least one setting"),
        ({"method": "random"}, "search: method random needs trials. Set search.trials, such as"),
        ({"method": "tpe"}, "search: method tpe needs trials."),
        (
            {"method": "grid", "space": LR | {"train.clip_norm": {"uniform": [0, 1]}}},
            "search: method grid tries every value, and train.clip_norm is a range without end.",
        ),
        (
            {"method": "grid", "trials": 3},
            "search: method grid tries every point, and trials is 3.",
        ),
        (
            {
                "method": "cma_es",
                "trials": 5,
                "space": {
                    **CHOICE,
                    "model.dropout": {"uniform": [0, 1], "when": {"model.use": "mlp"}},
                    "train.seed": {"int": [1, 9]},
                },
            },
            "search: method cma_es takes ranges of numbers without conditions, which model.use and "
            "model.dropout are not. Give ranges such as",
        ),
        (
            {"trials": 1, "space": {"model": [{"use": "linear"}], "model.hidden": [[3]]}},
            "search: space has model and model.hidden, which lies inside it. Remove one of them.",
        ),
        (
            {"trials": 1, "space": {"model.hidden": {"values": [[3]], "when": {"model.use": "x"}}}},
            "search: model.hidden is for when model.use is 'x', but space does not vary model.use.",
        ),
        (
            {
                "trials": 1,
                "space": {
                    "model.hidden": {"values": [[3]], "when": {"model.use": "mlp"}},
                    **CHOICE,
                },
            },
            "search: model.hidden is for when model.use is 'mlp'. Write model.use before model.hid",
        ),
        (
            {
                "trials": 1,
                "space": {
                    **CHOICE,
                    "model.hidden": {"values": [[3]], "when": {"model.use": "mpl"}},
                },
            },
            "search: model.hidden is for when model.use is 'mpl', but model.use is one of linear",
        ),
        (
            {
                "trials": 1,
                "space": {
                    "model.dropout": {"uniform": [0, 1]},
                    "model.hidden": {"values": [[3]], "when": {"model.dropout": 0.5}},
                },
            },
            "search: model.hidden is for when model.dropout is 0.5, but model.dropout is a range.",
        ),
        ({"trials": 0}, "search.trials is 0; expected a whole number >= 1. Set search.trials."),
        ({"trials": 1, "time_s": -1}, "search.time_s is -1; expected a number > 0."),
        (
            {"trials": 1, "method": "gird"},
            "search.method is 'gird'; expected grid, random, tpe, cma_es",
        ),
        (
            {"trials": 1, "metrics": "auroc"},
            "search.metrics is no known key. Did you mean 'metric'?",
        ),
        (
            {"trials": 1, "pruning": {"use": "asha"}},
            "search.pruning.use is 'asha'; expected halving, hyperband or async_halving.",
        ),
        (
            {"trials": 1, "pruning": {"use": "halving", "factor": 1}},
            "search.pruning.factor is 1; expected a whole number >= 2.",
        ),
        (
            {"trials": 1, "seed": 2**32},
            "search.seed is 4294967296; expected a whole number < 42949",
        ),
    ],
)
def test_a_section_that_cannot_be(search: dict[str, Any], said: str, here: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load_with(search, here)
    (line,) = str(raised.value).splitlines()
    place, _, text = line.partition(": ")
    assert place.startswith("p.yaml:")
    assert text.startswith(said)
