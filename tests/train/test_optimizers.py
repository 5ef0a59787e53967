import copy

import pytest
import torch
from pydantic import TypeAdapter

from ddlflow.models.mlp import Mlp
from ddlflow.spec.pipeline import AnyOptimizer
from ddlflow.train.optimizers import BUILT_IN, make_optimizer
from ddlflow.train.saved.digests import digest

SETTINGS = {
    "sgd": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adagrad": {"lr": 0.03, "eps": 1e-6, "weight_decay": 0.01},
    "rmsprop": {"lr": 0.004, "alpha": 0.9, "momentum": 0.5, "eps": 1e-6},
    "adam": {"lr": 0.005, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.01},
    "adamw": {"lr": 0.006, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
}
TORCHS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def spec(name):
    return TypeAdapter(AnyOptimizer).validate_python({"use": name, **SETTINGS[name]})


def trained(make, steps=20, ballast=0):
    """A small net after some steps; ``ballast`` moves where its memory lies."""
    torch.manual_seed(0)
    held = [torch.empty(n) for n in range(ballast)]
    net = Mlp(num_features=7, category_sizes=[], num_outputs=1, hidden=[33])
    optimizer = make(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        (net(torch.randn(16, 7)) - 1).square().mean().backward()
        optimizer.step()
    assert len(held) == ballast
    return net, optimizer


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_torchs_optimizer_with_the_pipelines_settings(name):
    ours, optimizer = trained(lambda p: make_optimizer(spec(name), p, device="cpu"))
    plain, _ = trained(lambda p: TORCHS[name](p, **SETTINGS[name], foreach=False))
    assert type(optimizer) is TORCHS[name]
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILT_IN)
def test_same_bits_again_wherever_the_memory_lies(name):
    digests = {
        digest(trained(lambda p: make_optimizer(spec(name), p, device="cpu"), ballast=n)[0])
        for n in (0, 1, 17)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw"])
def test_one_kernel_a_step_on_the_cpu(name):
    _, optimizer = trained(lambda p: make_optimizer(spec(name), p, device="cpu"), steps=1)
    assert optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize("name", BUILT_IN)
def test_state_goes_on_with_the_same_bits(name):
    def make(parameters):
        return make_optimizer(spec(name), parameters, device="cpu")

    net, optimizer = trained(make, steps=3)
    other = Mlp(num_features=7, category_sizes=[], num_outputs=1, hidden=[33])
    other.load_state_dict(net.state_dict())
    resumed = make(other.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rows = torch.randn(16, 7)
    for model, stepper in ((net, optimizer), (other, resumed)):
        stepper.zero_grad()
        model(rows).square().mean().backward()
        stepper.step()
    assert digest(net) == digest(other)
