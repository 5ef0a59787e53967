"""A model is called with the fields that its forward names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddlflow.models.call import call
from ddlflow.models.mlp import Mlp

BATCH = {
    "features": torch.randn(4, 3),
    "categories": torch.randint(5, (4, 2)),
    "image": torch.randn(4, 2, 2),
    "label": torch.zeros(4),
}
INPUTS = ["features", "categories", "image"]


def net_of(forward: Callable[..., Any]) -> nn.Module:
    return type("Net", (nn.Module,), {"forward": forward})()


def by_name(self: nn.Module, image: Tensor, features: Tensor) -> tuple[Tensor, ...]:
    return image, features


def with_default(self: nn.Module, image: Tensor, mask: Tensor | None = None) -> tuple[Any, ...]:
    return image, mask


def keyword_only(self: nn.Module, *, categories: Tensor) -> tuple[Tensor, ...]:
    return (categories,)


def by_position(self: nn.Module, x: Tensor, codes: Tensor, picture: Tensor) -> tuple[Tensor, ...]:
    return x, codes, picture


def all_of_them(self: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    return inputs


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        (by_name, ["image", "features"]),
        (with_default, ["image", None]),
        (keyword_only, ["categories"]),
        (by_position, INPUTS),
        (all_of_them, INPUTS),
    ],
)
def test_a_model_gets_what_its_forward_names(
    forward: Callable[..., Any], wanted: list[str | None]
) -> None:
    given = call(net_of(forward), INPUTS)(BATCH)
    assert len(given) == len(wanted)
    for one, name in zip(given, wanted, strict=True):
        assert one is (None if name is None else BATCH[name])


def test_a_built_in_model_takes_categories_where_there_are_any() -> None:
    net = Mlp(num_features=3, category_sizes=[5, 5], num_outputs=1, hidden=[4]).eval()
    expected = net(BATCH["features"], BATCH["categories"])
    assert torch.equal(call(net, INPUTS)(BATCH), expected)
    alone = Mlp(num_features=3, category_sizes=[], num_outputs=1, hidden=[4]).eval()
    assert torch.equal(call(alone, ["features"])(BATCH), alone(BATCH["features"]))
