"""A model is called with the fields that its forward names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddlflow.errors import SpecError
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


def all_by_name(self: nn.Module, **fields: Tensor) -> tuple[Tensor, ...]:
    return tuple(fields[name] for name in INPUTS)


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        (by_name, ["image", "features"]),
        (with_default, ["image", None]),
        (keyword_only, ["categories"]),
        (by_position, INPUTS),
        (all_of_them, INPUTS),
        (all_by_name, INPUTS),
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


def unknown_name(self: nn.Module, image: Tensor, pixels: Tensor) -> Tensor:
    return image


def too_few(self: nn.Module, x: Tensor) -> Tensor:
    return x


def too_many(self: nn.Module, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a


def keyword_that_is_none(self: nn.Module, *, mask: Tensor) -> Tensor:
    return mask


@pytest.mark.parametrize(
    ("forward", "needs"),
    [
        (unknown_name, "needs pixels"),
        (too_few, "needs x"),
        (too_many, "needs a, b, c, d"),
        (keyword_that_is_none, "needs mask"),
    ],
)
def test_what_is_no_field_is_told_with_the_fields_that_there_are(
    forward: Callable[..., Any], needs: str
) -> None:
    with pytest.raises(SpecError) as told:
        call(net_of(forward), INPUTS)
    assert str(told.value) == (
        f"Net.forward {needs}, and the fields of the data are features, categories, image. Name "
        "there those that the model reads, and give other parameters a default."
    )
