import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from ddlflow.errors import SpecError
from ddlflow.models import build
from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.spec import pipeline

SHAPE = {"num_features": 3, "category_sizes": [4, 2], "num_outputs": 1}


def spec(**section):
    return TypeAdapter(pipeline.Model).validate_python(section)


class Wide(nn.Module):
    def __init__(self, num_features, width=5):
        super().__init__()
        self.given = (num_features, width)


class Anything(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.given = given


class Raises(nn.Module):
    def __init__(self, depth):
        raise ValueError("depth is odd\nand more")


def no_module():
    return 3


@pytest.mark.parametrize(("use", "kind"), [("linear", Linear), ("mlp", Mlp)])
def test_built_in_names_give_their_class(use, kind):
    model = build(spec(use=use, embedding=2), **SHAPE)
    assert type(model) is kind
    assert model.embeddings.width == 4


def test_every_built_in_key_reaches_the_model():
    model = build(
        spec(use="mlp", hidden=[7, 5], activation="gelu", dropout=0.5, batch_norm=True), **SHAPE
    )
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == [*["Linear", "BatchNorm", "GELU", "Dropout"] * 2, "Linear"]
    assert [layer.out_features for layer in model.layers if isinstance(layer, nn.Linear)] == [
        7,
        5,
        1,
    ]


def test_first_weights_follow_the_generator_alone():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(spec(use="mlp"), **SHAPE).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_user_class_gets_what_it_has_parameters_for():
    assert build(spec(use="net:Wide", width=9), **SHAPE, user_class=Wide).given == (3, 9)
    given = build(spec(use="net:Anything", width=9), **SHAPE, user_class=Anything).given
    assert given == {**SHAPE, "width": 9}


def test_the_pipelines_own_argument_goes_before_ours():
    assert build(spec(use="net:Wide", num_features=8), **SHAPE, user_class=Wide).given == (8, 5)


def test_user_class_that_raises_is_named_in_one_line_with_its_place():
    with pytest.raises(SpecError) as caught:
        build(spec(use="net:Raises", depth=3), **SHAPE, user_class=Raises)
    message = str(caught.value)
    assert message.startswith("net:Raises(depth=3) raised ValueError: depth is odd (")
    assert "test_build.py:" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "user_class", "message"),
    [
        ({"use": "net:Wide", "widht": 9}, Wide, "no parameter 'widht'; it takes num_features, wi"),
        ({"use": "net:Raises"}, Raises, "net:Raises needs 'depth'"),
        ({"use": "net:no_module"}, no_module, r"made a int; expected a torch\.nn\.Module"),
        ({"use": "net:Wide"}, None, "has not been resolved"),
    ],
)
def test_user_code_that_does_not_fit(section, user_class, message):
    with pytest.raises(SpecError, match=message):
        build(spec(**section), **SHAPE, user_class=user_class)


def test_no_columns_at_all_is_refused():
    with pytest.raises(SpecError, match="no inputs"):
        build(spec(use="mlp"), num_features=0, category_sizes=[], num_outputs=1)
