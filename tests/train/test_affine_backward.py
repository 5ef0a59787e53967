"""Loss and gradients by hand against autograd's, and what is left to autograd."""

from typing import Any

import pytest
import torch
from torch import nn

from ddlflow.models import build
from ddlflow.models.mlp import Mlp
from ddlflow.spec.pipeline import LinearSection, MlpSection
from ddlflow.train import affine_backward as module
from ddlflow.train.affine_backward import affine_backward
from ddlflow.train.tasks.binary import BinaryTask
from ddlflow.train.tasks.criterion import Criterion
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget
from ddlflow.train.tasks.weights import Weighting

CLASSES = 4
NETS: dict[str, Any] = {
    "linear": LinearSection(use="linear"),
    "one hidden": MlpSection(use="mlp", hidden=[9]),
    "deep": MlpSection(use="mlp", hidden=[7, 5, 6]),
}


def net_of(section: Any, kind: str, categories: tuple[int, ...] = ()) -> nn.Module:
    torch.manual_seed(3)
    outputs = CLASSES if kind == "multiclass" else 1
    net = build(section, num_features=3, category_sizes=categories, num_outputs=outputs)
    for parameter in net.parameters():  # a linear model starts at 0, where much is 0
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return net.train()


def batch_of(kind: str, rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, 3, generator=random)
    if kind == "multiclass":
        labels = torch.randint(CLASSES, (rows,), generator=random)
    else:
        labels = torch.rand(rows, generator=random)
        labels = labels.round() if kind == "binary" else labels * 5
    return {"features": features, "label": labels}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", list(NETS))
def test_as_autograd(name: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a batch is many blocks, uneven ones, and after batches of another size."""
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 1)
    monkeypatch.setattr(module, "LEAST_ROWS", 16)
    task = task_for(kind, label=LabelTarget(num_classes=CLASSES))
    net = net_of(NETS[name], kind)
    by_hand = affine_backward(net, task, "float32", "cpu")
    assert by_hand is not None
    for rows in (100, 1, 37, 333):
        batch = batch_of(kind, rows)
        outputs = net(batch["features"])
        loss = {
            "binary": nn.functional.binary_cross_entropy_with_logits,
            "multiclass": nn.functional.cross_entropy,
            "regression": nn.functional.mse_loss,
        }[kind](outputs, batch["label"], reduction="sum")
        wanted = torch.autograd.grad(loss, list(net.parameters()))
        kept = {n: values.clone() for n, values in batch.items()}
        found = by_hand(batch)
        assert found.count == rows
        torch.testing.assert_close(found.total, loss.detach(), rtol=1e-5, atol=1e-5)
        for parameter, gradient in zip(net.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(values, kept[n]) for n, values in batch.items())


def test_its_gradients_are_memory_of_their_own() -> None:
    """Those of several virtual ranks are added up once all are there."""
    net = net_of(NETS["one hidden"], "binary")
    by_hand = affine_backward(net, task_for("binary"), "float32", "cpu")
    assert by_hand is not None
    one, other = batch_of("binary", 20), batch_of("binary", 30)
    first = by_hand(one)
    grads = [p.grad for p in net.parameters()]
    kept = [first.total.clone(), *(g.clone() for g in grads if g is not None)]
    by_hand(other)
    assert all(torch.equal(a, b) for a, b in zip(kept, [first.total, *grads], strict=True))


def test_a_loss_that_is_not_finite_is_seen() -> None:
    net = net_of(NETS["one hidden"], "binary")
    by_hand = affine_backward(net, task_for("binary"), "float32", "cpu")
    assert by_hand is not None
    batch = batch_of("binary", 50)
    batch["features"][20, 1] = torch.nan
    assert by_hand(batch).total.isnan()


class Own(Mlp):
    """A net of the user's that looks like ours."""

    def forward(self, features: torch.Tensor, categories: Any = None) -> torch.Tensor:
        return super().forward(2 * features)


def test_what_autograd_has_to_take() -> None:
    binary = task_for("binary")

    def takes(net: nn.Module, task: Any = binary, precision: str = "float32") -> bool:
        return affine_backward(net, task, precision, "cpu") is not None

    plain = net_of(NETS["one hidden"], "binary")
    assert takes(plain)
    assert not takes(plain, precision="bf16")
    assert affine_backward(plain, binary, "float32", "cuda") is None
    own_loss = BinaryTask(Criterion("m:f", lambda outputs, labels: (outputs - labels).square()))
    assert not takes(plain, own_loss)
    assert not takes(plain, BinaryTask(label=LabelTarget(weighting=Weighting(has_column=True))))
    for more in ({"dropout": 0.2}, {"batch_norm": True}, {"activation": "tanh"}):
        assert not takes(net_of(MlpSection(use="mlp", hidden=[9], **more), "binary"))
    assert not takes(net_of(NETS["one hidden"], "binary", (3,)))
    assert not takes(net_of(NETS["linear"], "binary", (3,)))
    assert not takes(Own(num_features=3, category_sizes=[], num_outputs=1))
    frozen = net_of(NETS["one hidden"], "binary")
    next(frozen.parameters()).requires_grad = False
    assert not takes(frozen)
