import math

import pytest
import torch
from torch import nn

from ddlflow.models.mlp import BatchNorm, Mlp, start_weights


def test_it_is_the_plain_stack_of_torch_layers():
    model = Mlp(num_features=4, category_sizes=[], num_outputs=1, hidden=[6], activation="tanh")
    first, last = model.layers[0], model.layers[-1]
    features = torch.randn(5, 4)
    expected = torch.tanh(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model(features), expected[:, 0])


def test_shapes_with_categories_and_without_features():
    both = Mlp(num_features=4, category_sizes=[5, 7], num_outputs=3)
    assert both(torch.randn(2, 4), torch.tensor([[4, 6], [0, 0]])).shape == (2, 3)
    alone = Mlp(num_features=0, category_sizes=[5], num_outputs=1)
    assert alone(torch.empty(2, 0), torch.tensor([[4], [0]])).shape == (2,)
    assert both.layers[0].in_features == 4 + 3 + 4


@pytest.mark.parametrize(
    ("start", "activation", "variance"),
    [
        ("he", "relu", 2 / 400),
        ("he", "gelu", 2 / 400),
        ("he", "tanh", (5 / 3) ** 2 / 400),
        ("he", "sigmoid", 1 / 400),
        ("he", None, 1 / 400),
        ("xavier", "relu", 2 * 2 / (400 + 600)),
        ("xavier", "tanh", (5 / 3) ** 2 * 2 / (400 + 600)),
        ("xavier", None, 2 / (400 + 600)),
    ],
)
def test_first_weights_have_the_published_variance(start, activation, variance):
    torch.manual_seed(0)
    layer = nn.Linear(400, 600)
    start_weights(layer, start, activation)
    # 240,000 draws: the standard error of the variance is below 0.3 %.
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert layer.bias.abs().max() == 0
    if start == "xavier":
        assert layer.weight.abs().max().item() <= math.sqrt(3 * variance) * 1.0001


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = Mlp(num_features=4, category_sizes=[], num_outputs=1, hidden=[50], dropout=0.5)
    features = torch.randn(3, 4)
    assert not torch.equal(model(features), model(features))
    model.eval()
    assert torch.equal(model(features), model(features))


def test_batch_norm_is_torchs_but_for_a_single_row():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3)
    rows = torch.randn(6, 3)
    assert torch.equal(ours(rows), theirs(rows))
    assert torch.equal(ours.running_var, theirs.running_var)
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(rows[:1])
    before = ours.running_mean.clone()
    one = ours(rows[:1])
    assert torch.equal(one, ours.eval()(rows[:1]))
    assert torch.equal(ours.running_mean, before)


def test_batch_norm_trains_on_a_single_row_and_keeps_only_averages():
    model = Mlp(num_features=2, category_sizes=[], num_outputs=1, hidden=[4], batch_norm=True)
    model(torch.randn(1, 2)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.layers[0].bias is None
    assert all(buffer.is_floating_point() for buffer in model.buffers())
    other = Mlp(num_features=2, category_sizes=[], num_outputs=1, hidden=[4], batch_norm=True)
    other.load_state_dict(dict(model.state_dict()))  # a plain dict, as checkpoints hold it
