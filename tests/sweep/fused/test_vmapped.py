"""Models and losses of the user's, stacked through vmap, against the same alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ddlflow.errors import SpecError
from ddlflow.sweep.fused.plan import plan_stacks
from ddlflow.sweep.run import Piece

MODULE = "own_of_test_vmapped"
CODE = '''
import torch
from torch import nn


class Gated(nn.Module):
    """Two branches, a constant buffer drawn from the seed, and dropout in two places."""

    def __init__(self, num_features, width=6, dropout=0.0, power=1.0):
        super().__init__()
        self.power = power
        self.inner = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, width))
        self.last = nn.Linear(width, 1)
        self.fixed = nn.Parameter(torch.randn(width), requires_grad=False)
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("mix", torch.randn(width))

    def forward(self, features):
        gate = torch.sigmoid(self.gate(features)) * self.mix + self.fixed
        return self.last(self.inner(features) * gate).squeeze(1) * self.power


class Normed(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features)
        self.last = nn.Linear(num_features, 1)

    def forward(self, features):
        return self.last(self.norm(features)).squeeze(1)


class Recurrent(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.inner = nn.LSTM(1, 4, batch_first=True)
        self.last = nn.Linear(4, 1)

    def forward(self, features):
        return self.last(self.inner(features.unsqueeze(2))[0][:, -1]).squeeze(1)


class Branching(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.last = nn.Linear(num_features, 1)

    def forward(self, features):
        outputs = self.last(features).squeeze(1)
        return outputs * 2 if outputs.sum() > 0 else outputs


class Noisy(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.last = nn.Linear(num_features, 1)

    def forward(self, features):
        return self.last(features + torch.randn_like(features)).squeeze(1)


def squared(outputs, labels):
    return ((torch.sigmoid(outputs) - labels) ** 2).sum()


def focal(outputs, labels, gamma=2.0):
    share = torch.sigmoid(torch.where(labels > 0.5, outputs, -outputs))
    return -((1 - share) ** gamma) * torch.log(share.clamp(min=1e-6))


def steered(outputs, labels):
    return (outputs * labels).sum() if outputs[0].item() > 0 else (outputs - labels).square().sum()
'''


@pytest.fixture(scope="module")
def own(ground: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The data set with a module of the user's."""
    code = tmp_path_factory.mktemp("code")
    (code / f"{MODULE}.py").write_text(CODE)
    plain = ground()
    return replace(plain, prepared=replace(plain.prepared, code=code))


def test_a_model_of_the_users(own: Any, unlike: Any) -> None:
    rates = [0.0, 0.25, 0.5]
    members = [
        own.member(
            f"{k}/{fold}",
            model={"use": f"{MODULE}:Gated", "dropout": rate},
            fold=fold,
            seed=k,
            epochs=2,
            optimizer={"use": "adam", "lr": 0.01 * (k + 1)},
            penalty={"l1": 1e-3},
            clip_norm=0.5,
        )
        for k, rate in enumerate(rates)
        for fold in (None, 0)
    ]
    fused, apart = own.fused(members), own.apart(members)
    for member in members:
        assert unlike(fused[member.id], apart[member.id]) < 1e-5, member.id


def test_an_argument_that_is_no_dropout_parts_stacks(own: Any) -> None:
    model = {"use": f"{MODULE}:Gated"}
    members = [
        own.member("a", model=model),
        own.member("b", model=model | {"dropout": 0.5}, seed=2),
        own.member("c", model=model | {"power": 2.0}),
        own.member("d", model=model | {"width": 5}),
    ]
    ids = [[member.id for member in group.members] for group in own.groups(members)]
    assert ids == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    "model", [{"use": "mlp", "hidden": [6]}, {"use": f"{MODULE}:Gated"}], ids=str
)
@pytest.mark.parametrize("loss", ["squared", "focal"])
def test_a_loss_of_the_users(own: Any, unlike: Any, model: Any, loss: str) -> None:
    objective = {"use": f"{MODULE}:{loss}", "like": "binary"}
    members = [own.member(f"{f}", model=model, fold=f, objective=objective) for f in (0, 1)]
    fused, apart = own.fused(members), own.apart(members)
    for member in members:
        assert unlike(fused[member.id], apart[member.id]) < 1e-5
        metrics = apart[member.id].metrics
        assert fused[member.id].metrics == pytest.approx(metrics, rel=1e-3)


@pytest.mark.parametrize(
    ("train", "model", "why"),
    [
        ({}, {"use": f"{MODULE}:Normed"}, "changes its buffer norm.running_mean"),
        ({}, {"use": "mlp", "batch_norm": True}, "changes its buffer"),
        ({}, {"use": f"{MODULE}:Recurrent"}, "vmap does not take Recurrent"),
        ({}, {"use": f"{MODULE}:Branching"}, "vmap does not take Branching"),
        ({}, {"use": f"{MODULE}:Noisy"}, "vmap does not take Noisy"),
        ({"precision": "bf16"}, {"use": "linear"}, "bf16 is trained apart"),
        ({"objective": {"use": f"{MODULE}:steered", "like": "binary"}}, {"use": "linear"}, "vmap"),
    ],
    ids=str,
)
def test_what_has_to_be_trained_apart_is_and_says_why(
    own: Any, train: dict[str, Any], model: dict[str, Any], why: str
) -> None:
    member = own.member("m", model=model, **train)
    (group,) = own.groups([member])
    assert group.apart is not None
    assert why in group.apart
    assert "\n" not in group.apart
    result = own.train(Piece(group.members, False, group.apart))["m"]
    assert result.status == "done"
    with pytest.raises(SpecError, match="fuse is always, but m has to be trained apart"):
        plan_stacks([member], own.prepared, fuse="always")
