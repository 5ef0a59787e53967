import pytest
import torch
import torch.nn.functional as F

from ddlflow.errors import SpecError
from ddlflow.models.linear import Linear


def filled(**shape):
    torch.manual_seed(0)
    model = Linear(**shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_hot_is_an_affine_map_of_indicator_columns(num_outputs, dtype):
    model = filled(num_features=4, category_sizes=[3, 5], num_outputs=num_outputs)
    features, codes = torch.randn(6, 4), torch.tensor([[0, 4], [2, 0], [1, 1]] * 2)
    indicators = torch.cat([F.one_hot(codes[:, 0], 3), F.one_hot(codes[:, 1], 5)], dim=1).float()
    expected = features @ model.weight.T + indicators @ model.one_hot + model.bias
    outputs = model(features, codes.to(dtype))
    assert outputs.shape == ((6,) if num_outputs == 1 else (6, 3))
    torch.testing.assert_close(outputs.reshape(6, -1), expected)


def test_no_numeric_columns():
    model = filled(num_features=0, category_sizes=[3], num_outputs=1)
    outputs = model(torch.empty(3, 0), torch.tensor([[0], [1], [2]]))
    torch.testing.assert_close(outputs, model.one_hot[:, 0] + model.bias)
    outputs.sum().backward()
    assert model.one_hot.grad.tolist() == [[1], [1], [1]]


def test_embedded_categories_and_the_map_both_learn_from_the_first_step_on():
    model = Linear(num_features=1, category_sizes=[4], num_outputs=1, embedding=2)
    features, codes = torch.randn(8, 1), torch.arange(8).reshape(8, 1) % 4
    for _ in range(2):
        model.zero_grad()
        (model(features, codes) - codes[:, 0]).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.01 * parameter.grad)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert [name for name, _ in model.named_parameters()][:2] == ["weight", "bias"]


def test_parameters_are_those_that_can_learn():
    model = Linear(num_features=2, category_sizes=[], num_outputs=1)
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]
    assert set(model.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("embedding", [None, 2])
def test_codes_that_are_not_given_are_asked_for(embedding):
    model = Linear(num_features=1, category_sizes=[4], num_outputs=1, embedding=embedding)
    with pytest.raises(SpecError, match="categories"):
        model(torch.randn(3, 1))
