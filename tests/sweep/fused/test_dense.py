"""The models by hand against the same alone: every activation, dropout, categories, objective."""

from collections.abc import Callable
from typing import Any

import pytest

WITHIN = 1e-5


def equal(ground: Any, members: list[Any], unlike: Any) -> None:
    fused, apart = ground.fused(members), ground.apart(members)
    for member in members:
        assert unlike(fused[member.id], apart[member.id]) < WITHIN, member.id


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
def test_every_activation_with_and_without_dropout(
    ground: Callable[..., Any], unlike: Any, activation: str
) -> None:
    model = {"use": "mlp", "hidden": [9, 6], "activation": activation}
    rates = [0.0, 0.3, 0.3, 0.6]
    members = [
        ground().member(f"{k}/{fold}", model=model | {"dropout": rate}, seed=k % 3, fold=fold)
        for k, rate in enumerate(rates)
        for fold in (None, 0, 1)
    ]
    equal(ground(), members, unlike)


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("features", ["numbers", "all", "codes"])
@pytest.mark.parametrize(
    "model",
    [
        {"use": "linear"},
        {"use": "linear", "embedding": 2},
        {"use": "mlp", "hidden": [7], "start": "xavier"},
        {"use": "mlp", "hidden": [7, 5, 4], "embedding": 3, "dropout": 0.2},
    ],
    ids=str,
)
def test_every_model_objective_and_kind_of_column(
    ground: Callable[..., Any], unlike: Any, labels: str, features: str, model: dict[str, Any]
) -> None:
    chosen = ground(labels, features)
    penalty = {"penalty": {"l1": 1e-3, "l2": 1e-3}}
    members = [
        chosen.member("a", model=model),
        chosen.member("b", model=model, fold=1, optimizer={"use": "adam", "lr": 0.03}, **penalty),
        chosen.member("c", model=model, fold=1, seed=3),
    ]
    equal(chosen, members, unlike)
