"""Points of a space, and what each means for the pipeline."""

import itertools
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import MlpSection, Pipeline, SearchRange, Sgd
from ddlflow.sweep.choose import space as space_
from ddlflow.sweep.choose.space import (
    edges,
    metric_of,
    num_points,
    points,
    settings,
    wrong_names,
    wrong_points,
)

PIPELINE = """
name: p
data: {source: t.parquet, label: y, split: {validation: 0.2, test: 0}}
model: {use: mlp, hidden: [8]}
train: {objective: binary, batch_rows: 64, optimizer: {use: adamw, lr: 0.01, betas: [0.8, 0.9]}}
"""
NETS = {
    "model.use": ["linear", "mlp"],
    "model.hidden": {"values": [[4], [8, 4]], "when": {"model.use": "mlp"}},
    "train.optimizer.lr": [0.1, 0.2],
}


def ranges(space: dict[str, Any]) -> dict[str, SearchRange]:
    return {name: SearchRange.model_validate(one) for name, one in space.items()}


def pipeline(space: dict[str, Any], text: str = PIPELINE, **search: Any) -> Pipeline:
    search = {"method": "random", "trials": 5, "space": space} | search
    if search["method"] == "grid":
        search.pop("trials")
    return Pipeline.model_validate({**yaml.safe_load(text), "search": search})


# ---- points ---------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_is_the_product_in_the_files_order(sizes: list[int]) -> None:
    lists = [[f"{k}-{value}" for value in range(size)] for k, size in enumerate(sizes)]
    space = ranges({f"name{k}": values for k, values in enumerate(lists)})
    found = list(points(space))
    assert [tuple(point.values()) for point in found] == list(itertools.product(*lists))
    assert all(list(point) == list(space) for point in found)
    assert num_points(space) == len(found)


def test_a_setting_whose_condition_fails_is_not_there() -> None:
    found = list(points(ranges(NETS)))
    assert found == [
        {"model.use": "linear", "train.optimizer.lr": 0.1},
        {"model.use": "linear", "train.optimizer.lr": 0.2},
        {"model.use": "mlp", "model.hidden": [4], "train.optimizer.lr": 0.1},
        {"model.use": "mlp", "model.hidden": [4], "train.optimizer.lr": 0.2},
        {"model.use": "mlp", "model.hidden": [8, 4], "train.optimizer.lr": 0.1},
        {"model.use": "mlp", "model.hidden": [8, 4], "train.optimizer.lr": 0.2},
    ]
    assert num_points(ranges(NETS)) == 6


def test_a_condition_on_a_condition() -> None:
    space = ranges(
        {
            "a": [1, 2, 3],
            "b": {"values": ["x", "y"], "when": {"a": [2, 3]}},
            "c": {"values": [7], "when": {"b": "y"}},
        }
    )
    assert list(points(space)) == [
        {"a": 1},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y", "c": 7},
        {"a": 3, "b": "x"},
        {"a": 3, "b": "y", "c": 7},
    ]
    assert list(edges(space)) == [
        {"a": 1},
        {"a": 2, "b": "x"},
        {"a": 3, "b": "x"},
        {"a": 2, "b": "y", "c": 7},
    ]


def test_a_condition_may_name_a_value_that_is_a_list() -> None:
    space = ranges({"a": [[1], [2]], "b": {"values": [5], "when": {"a": [1]}}})
    assert list(points(space)) == [{"a": [1], "b": 5}, {"a": [2]}]


def test_the_points_of_a_huge_grid_are_not_listed_to_be_counted() -> None:
    space = ranges({f"a{k}": list(range(100)) for k in range(10)} | {"b": {"int": [1, 10**12]}})
    assert num_points(space, most=1000) == 1001
    assert num_points(ranges({"b": {"int": [1, 10**12]}}), most=10**13) == 10**12
    conditional = space | ranges({"c": {"values": [1], "when": {"a0": 1}}})
    assert num_points(conditional, most=1000) == 1001


def test_edges_meet_every_value_and_every_end() -> None:
    space = ranges(NETS | {"model.dropout": {"uniform": [0, 0.5]}, "train.seed": {"int": [1, 9]}})
    found = list(edges(space))
    for name, one in space.items():
        for end in one.ends:
            assert any(point.get(name) == end for point in found), f"{name} {end}"
    assert all(("model.hidden" in point) == (point["model.use"] == "mlp") for point in found)


# ---- what a point means ---------------------------------------------------------------------


def test_settings_are_the_pipeline_with_the_values_set() -> None:
    whole = pipeline({"train.optimizer.lr": [0.1]})
    trial = settings(whole, {"train.optimizer.lr": 0.1, "model.hidden": [3], "train.penalty.l1": 2})
    assert trial.train.optimizer.lr == 0.1
    assert trial.train.optimizer.betas == (0.8, 0.9)  # type: ignore[union-attr]
    assert trial.model == MlpSection(use="mlp", hidden=[3])
    assert trial.train.penalty.l1 == 2
    assert trial.search is None
    assert (trial.data, trial.train.seed) == (whole.data, whole.train.seed)


def test_a_section_that_is_none_is_begun() -> None:
    trial = settings(pipeline({"train.clip_norm": [1]}), {"train.early_stopping.patience": 2})
    assert trial.train.early_stopping is not None
    assert trial.train.early_stopping.patience == 2


def test_another_use_takes_over_what_is_not_the_olds_default() -> None:
    text = PIPELINE.replace(", betas: [0.8, 0.9]", ", weight_decay: 0.5")
    whole = pipeline({"train.optimizer.use": ["sgd"]}, text)
    for read_again in (
        whole,
        Pipeline.model_validate(whole.model_dump(mode="json", by_alias=True)),
    ):
        trial = settings(
            read_again, {"train.optimizer.momentum": 0.9, "train.optimizer.use": "sgd"}
        )
        assert trial.train.optimizer == Sgd(use="sgd", lr=0.01, weight_decay=0.5, momentum=0.9)
    with pytest.raises(SpecError) as raised:
        settings(pipeline({"train.optimizer.use": ["sgd"]}), {"train.optimizer.use": "sgd"})
    assert str(raised.value) == (
        "search.space.train.optimizer.use: with train.optimizer.use sgd, train.optimizer.betas is "
        "no known key. Move train.optimizer.betas into space, with when: {train.optimizer.use: "
        "...}."
    )


def test_user_code_and_whole_sections_are_values() -> None:
    whole = pipeline({"model": [{"use": "net:Wide", "width": 3}]})
    assert settings(whole, {"model": {"use": "net:Wide", "width": 3}}).model.arguments == {  # type: ignore[union-attr]
        "width": 3
    }
    text = PIPELINE.replace(", hidden: [8]", "")
    user = settings(pipeline({"model.use": ["mlp"]}, text), {"model.use": "net:Wide"})
    assert user.model.use == "net:Wide"
    assert user.model.arguments == {}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("objective", "metric", "better"),
    [
        ("binary", "auroc", "higher"),
        ("multiclass", "accuracy", "higher"),
        ("regression", "loss", "lower"),
        ({"use": "l:f", "like": "regression"}, "loss", "lower"),
    ],
)
def test_the_metric_that_a_search_goes_by(objective: Any, metric: str, better: str) -> None:
    values = yaml.safe_load(PIPELINE)
    values["train"]["objective"] = objective
    text = yaml.safe_dump(values)
    assert metric_of(pipeline({"train.seed": [1]}, text)) == (metric, better)
    assert metric_of(pipeline({"train.seed": [1]}, text, metric="loss")) == ("loss", "lower")


# ---- what cannot be tried -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "lr",
            "a search varies model.* and train.*, and lr is neither. Did you mean 'train.optimiz",
        ),
        (
            "trian.epochs",
            "a search varies model.* and train.*, and trian.epochs is neither. Did you",
        ),
        ("data.seed", "a search varies model.* and train.*, and data.seed is neither."),
        ("search.seed", "a search varies model.* and train.*, and search.seed is neither."),
        ("name", "a search varies model.* and train.*, and name is neither."),
        ("train", "a search varies model.* and train.*, and train is neither."),
        ("train.objective", "a search may not vary train.objective: scores of different losses"),
        ("train.objective.use", "a search may not vary train.objective.use: scores of different"),
        (
            "train.digest_every",
            "a search may not vary train.digest_every: it never changes a score",
        ),
        (
            "train.epochs",
            "pruning compares trials of equal length. Remove train.epochs, or pruning.",
        ),
    ],
)
def test_a_name_that_a_search_may_not_vary(name: str, said: str) -> None:
    whole = pipeline({name: [1]}, pruning={"use": "halving"})
    assert whole.search is not None
    ((found, text),) = wrong_names(whole.search)
    assert found == name
    assert text.startswith(said)


@pytest.mark.parametrize("method", ["grid", "random"])
@pytest.mark.parametrize(
    ("space", "name", "said"),
    [
        (
            {"train.optimizer.lrr": [1]},
            "train.optimizer.lrr",
            "train.optimizer.lrr is no known key. Did you mean 'lr'? Known here: betas, eps, lr,",
        ),
        (
            {"train.optimizer.lr": [0.1, -1, -1.5]},
            "train.optimizer.lr",
            "train.optimizer.lr is -1; expected a number > 0.",
        ),
        (
            {"train.seed": [1, 2], "model.hidden": [[3, 0]]},
            "model.hidden",
            "model.hidden[1] is 0; expected a whole number >= 1.",
        ),
        (
            {"model.hidden.0": [3]},
            "model.hidden.0",
            "model.hidden is [8], so it has no 0. Set model.hidden whole.",
        ),
        (
            {"train.virtual_ranks": [2, 64], "train.micro_batch_rows": [1, 64]},
            "train.virtual_ranks",
            "with train.virtual_ranks 2, train.micro_batch_rows 1: 2 virtual_ranks cut a batch",
        ),
        (
            {"model.use": ["mlp", "linear"]},
            "model.use",
            "with model.use linear, model.hidden is no known key. Move model.hidden into space,",
        ),
        (
            {"model.use": ["mlp", "mpl"]},
            "model.use",
            "model.use is 'mpl'; expected linear, mlp or m",
        ),
        (
            {"train.optimizer": [{"use": "sgd", "lrr": 3}]},
            "train.optimizer",
            "train.optimizer.lrr is no known key. Did you mean 'lr'?",
        ),
    ],
)
def test_a_point_that_no_training_takes(
    space: dict[str, Any], name: str, said: str, method: str
) -> None:
    found = list(wrong_points(pipeline(space, method=method)))
    assert found[0][0] == name
    assert found[0][1].startswith(said)
    assert len(found) == len(set(found))


def test_each_end_of_a_range_is_looked_at() -> None:
    ((name, text),) = wrong_points(pipeline({"model.dropout": {"uniform": [0, 1.5]}}))
    assert name == "model.dropout"
    assert text == "model.dropout is 1.5; expected a number < 1."


def test_a_good_space_has_no_wrong_point() -> None:
    text = PIPELINE.replace(", hidden: [8]", "")
    space = NETS | {"train.schedule.use": ["constant", "cosine"], "train.precision": ["bf16"]}
    for method in ("grid", "tpe"):
        whole = pipeline(space, text, method=method)
        assert whole.search is not None
        assert list(wrong_names(whole.search)) == list(wrong_points(whole)) == []


def test_a_grid_of_too_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_, "MOST_POINTS", 5)
    space = {"train.seed": [1, 2], "train.epochs": [1, 2, 3]}
    (found,) = wrong_points(pipeline(space, method="grid"))
    assert found == (
        "train.epochs",
        "the grid has more than 5 points. Use method: random and trials.",
    )
