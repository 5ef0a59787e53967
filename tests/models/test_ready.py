"""Lazy layers get their shapes from the seed alone; batch norm trains on one row."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddlflow.errors import SpecError
from ddlflow.models.ready import ready


class Lazy(nn.Module):
    def __init__(self, *, spare: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.5)
        )
        self.last = nn.LazyLinear(1)
        self.spare = nn.LazyLinear(2) if spare else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.inner(features))
        return outputs.squeeze(1)


def test_lazy_layers_draw_their_weights_from_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        net = ready("net:Lazy", Lazy(), num_features=3)
        assert all(part.training for part in net.modules())
        states.append(net.state_dict())
    torch.manual_seed(5)
    plain = [nn.Linear(3, 6), nn.Linear(6, 1)]  # what torch alone draws, in the same order
    for one, two in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(states[0]["inner.0.weight"], plain[0].weight)
    assert torch.equal(states[0]["last.weight"], plain[1].weight)
    assert torch.equal(states[0]["inner.1.running_mean"], torch.zeros(6))


def test_lazy_layers_without_a_shape_are_one_line() -> None:
    with pytest.raises(SpecError, match=r"net:Lazy has lazy layers .*: spare.weight, spare.bias"):
        ready("net:Lazy", Lazy(spare=True), num_features=3)
    with pytest.raises(SpecError, match="net:M raised on 2 rows of 3 features"):
        ready("net:M", nn.Sequential(nn.LazyLinear(4), nn.Linear(9, 1)), num_features=3)


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(3), (1, 3)),
    (lambda: nn.BatchNorm1d(3, momentum=None), (1, 3)),
    (lambda: nn.BatchNorm1d(3, affine=False), (1, 3, 1)),
    (lambda: nn.BatchNorm2d(3), (1, 3, 1, 1)),
    (lambda: nn.BatchNorm3d(3), (1, 3, 1, 1, 1)),
    (lambda: nn.SyncBatchNorm(3), (1, 3)),
    (lambda: nn.BatchNorm1d(3, track_running_stats=False), (1, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_one_row_is_normalised_by_running_statistics(
    layer: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = ready("net:M", nn.Sequential(layer()), num_features=3)
    norm: Any = net[0]  # type: ignore[index]
    rows = torch.tensor([1.0, -2.0, 5.0]).reshape(shape)
    tracks = norm.running_mean is not None
    if tracks:
        norm.running_mean.copy_(torch.tensor([0.5, 0.0, 1.0]))
        norm.running_var.fill_(4.0)
    before = copy.deepcopy(net.state_dict())
    net = copy.deepcopy(net).train()  # as the probe and a stack copy it
    outputs = net(rows)
    mean = torch.tensor([0.5, 0.0, 1.0]).reshape(shape) if tracks else rows
    wanted = (rows - mean) / (4.0 + 1e-5) ** 0.5
    assert torch.allclose(outputs, wanted, atol=1e-4)
    assert outputs.shape == rows.shape
    assert net.training
    assert net[0].training  # type: ignore[index]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_more_rows_are_torchs_own() -> None:
    plain, own = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    ready("net:M", nn.Sequential(own), num_features=3)
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    assert torch.equal(plain(rows), own(rows))
    assert torch.equal(plain.running_var, own.running_var)
    # One row of several places has a variance.
    images, two = rows.reshape(1, 3, 2, 2), nn.BatchNorm2d(3)
    ready("net:M", two, num_features=3)
    assert torch.equal(nn.BatchNorm2d(3)(images), two(images))


def test_an_error_in_the_layer_leaves_it_in_training() -> None:
    layer = nn.BatchNorm1d(3)
    ready("net:M", layer, num_features=3)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 4))
    assert layer.training
