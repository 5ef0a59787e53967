"""Tensors and sequences as models get them: flattened beside numbers, named, or refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddlflow.data.fields import Field
from ddlflow.errors import SpecError
from ddlflow.models import build
from ddlflow.models.call import call
from ddlflow.spec.pipeline import LinearSection, MlpSection, UserCode
from ddlflow.train.probe import check_model
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget

IMAGE = Field("image", "input", "uint8", (3, 2), "tensor", "as a whole")
VECTOR = Field("vector", "input", "float32", (4,), "tensor", "by element")
STEPS = Field("steps", "input", "float32", (5,), "sequence", "by element")
BATCH = {
    "features": torch.randn(7, 2),
    "categories": torch.randint(3, (7, 1)),
    "image": torch.randn(7, 3, 2),
    "vector": torch.randn(7, 4),
}


def made(spec: Any, **values: Any) -> nn.Module:
    settings = {"num_features": 2, "category_sizes": [3], "num_outputs": 3} | values
    return build(spec, **{"tensors": [IMAGE, VECTOR]} | settings)


@pytest.mark.parametrize("spec", [MlpSection(use="mlp", hidden=[8]), LinearSection(use="linear")])
def test_built_in_models_take_tensors_flattened_beside_the_features(spec: Any) -> None:
    torch.manual_seed(1)
    net = made(spec)
    torch.manual_seed(1)
    flat = build(spec, num_features=12, category_sizes=[3], num_outputs=3)
    with torch.no_grad():
        for parameter, other in zip(net.parameters(), flat.parameters(), strict=True):
            parameter.normal_()
            other.copy_(parameter)
    together = torch.cat([BATCH["features"], BATCH["image"].reshape(7, 6), BATCH["vector"]], dim=1)
    found = call(net, [*BATCH])(BATCH)
    assert torch.equal(found, flat(together, BATCH["categories"]))


def test_an_image_alone_is_an_input() -> None:
    net = made(
        MlpSection(use="mlp", hidden=[8]), num_features=0, category_sizes=[], tensors=[IMAGE]
    )
    only = {"image": BATCH["image"]}
    assert call(net, ["image"])(only).shape == (7, 3)
    codes = made(
        LinearSection(use="linear", features=["town"]), num_features=0, names=["town", "image"]
    )
    inputs = {"categories": BATCH["categories"], "image": BATCH["image"], "vector": BATCH["vector"]}
    assert call(codes, [*inputs])(inputs).shape == (7, 3)


def test_a_linear_model_of_some_features() -> None:
    names = ["a", "b", "town", "image", "vector"]
    net = made(LinearSection(use="linear", features=["b", "vector"]), names=names)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    before = call(net, [*BATCH])(BATCH)
    for name, used in (("image", False), ("vector", True), ("categories", False)):
        other = {**BATCH, name: torch.zeros_like(BATCH[name])}
        assert torch.equal(call(net, [*BATCH])(other), before) != used


@pytest.mark.parametrize("spec", [MlpSection(use="mlp", hidden=[8]), LinearSection(use="linear")])
def test_a_sequence_needs_a_model_of_the_users(spec: Any) -> None:
    with pytest.raises(SpecError) as told:
        made(spec, tensors=[IMAGE, STEPS])
    assert str(told.value) == (
        f"model {spec.use} takes no sequences, and steps (float32 [steps, 5]) is one. Name a model "
        "of your own whose forward has the parameters steps and steps_length, or list the column "
        "in data.exclude. Lists of one length (here 3) become a tensor by data.derive: "
        '{w: "steps::FLOAT[5][3]"} with data.exclude: [steps].'
    )


def test_components_are_of_numbers() -> None:
    with pytest.raises(SpecError, match=r"model\.pca is fitted to numeric features, and image"):
        made(MlpSection(use="mlp", hidden=[8], pca=2))


class Own(nn.Module):
    def __init__(self, fields: dict[str, tuple[int | None, ...]], num_outputs: int) -> None:
        super().__init__()
        self.fields = fields
        self.first = nn.LazyLinear(8)
        self.last = nn.Linear(8 + 6, num_outputs)

    def forward(self, steps: Tensor, image: Tensor, steps_length: Tensor) -> Tensor:
        assert steps.shape[1] == int(steps_length.max())
        mean = steps.sum(1) / steps_length[:, None]
        return self.last(torch.cat([self.first(mean), image.flatten(1)], 1))  # type: ignore


def test_a_users_model_gets_the_shapes_and_the_fields_that_it_names() -> None:
    settings: Any = {"num_features": 2, "category_sizes": [3], "num_outputs": 3}
    spec = UserCode(use="net:Own")
    net: Any = build(spec, **settings, user_class=Own, tensors=[IMAGE, VECTOR, STEPS])
    assert net.fields == {
        "features": (2,),
        "categories": (1,),
        "image": (3, 2),
        "vector": (4,),
        "steps": (None, 5),
        "steps_length": (),
    }
    assert net.first.weight.shape == (8, 5)
    task = task_for("multiclass", label=LabelTarget(num_classes=3))
    tensors = [IMAGE, VECTOR, STEPS]
    known: Any = {"num_features": 2, "category_sizes": [3], "tensors": tensors}
    assert check_model(net, task, row_counts=(1, 2, 5), **known) == ()
    with pytest.raises(SpecError, match=r"Own\.forward needs steps, steps_length, and the fields"):
        check_model(net, task, **known | {"tensors": [IMAGE]})


class Everything(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_a_table_is_offered_what_it_was_before() -> None:
    settings: Any = {"num_features": 2, "category_sizes": [], "num_outputs": 3}
    net: Any = build(UserCode(use="net:E"), **settings, user_class=Everything)
    assert set(net.given) == {"num_features", "category_sizes", "num_outputs"}
