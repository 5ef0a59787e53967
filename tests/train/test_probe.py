import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddlflow.errors import SpecError
from ddlflow.models.mlp import Mlp
from ddlflow.spec.pipeline import UserObjective
from ddlflow.train.probe import check_loss, check_model, looks_like
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget


def user(function, like="binary"):
    return task_for(UserObjective(use="m:f", like=like), function)


class Net(nn.Module):
    """One line of a user's model, over a layer of 3 features."""

    def __init__(self, line):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.spare = nn.Linear(3, 1)
        self.line = line

    def forward(self, features):
        return self.line(self, features)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_built_in_models_and_objectives_pass(kind):
    objective = task_for(kind, label=LabelTarget(num_classes=5))
    model = Mlp(
        num_features=3,
        category_sizes=[4],
        num_outputs=objective.num_outputs,
        dropout=0.5,
        batch_norm=True,
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    unused = check_model(
        model,
        objective,
        num_features=3,
        category_sizes=[4],
        row_counts=(1, 2, 3),
    )
    assert unused == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_parameters_without_a_gradient_are_named():
    model = Net(lambda self, x: self.layer(x).squeeze(1))
    unused = check_model(model, task_for("binary"), num_features=3)
    assert unused == ("spare.weight", "spare.bias")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (lambda self, x: self.layer(x), r"shape \[2, 1\].*expected.*\[2\]\. Drop the last axis"),
        (lambda self, x: self.layer(x).expand(-1, 2), r"\[2, 2\].*\[2\]\. Give one number a row"),
        (lambda self, x: self.layer(x).squeeze(), r"\[\] for 1 row.*\[1\]\. Squeeze the last axis"),
        (lambda self, x: self.layer(x).squeeze(1)[:1], r"\[1\] for 2 row.*\. Give each row"),
        (lambda self, x: (self.layer(x),), "gave a tuple for 2 row"),
        (lambda self, x: self.layer(x).squeeze(1).long(), r"gave torch\.int64"),
        (lambda self, x: self.layer(x).squeeze(1).detach(), "No gradient reaches"),
        (lambda self, x: self.layer(x[:, :2]).squeeze(1), r"raised on 2 row.*test_probe\.py:"),
        (lambda self, x: self.missing(x), "AttributeError.*'missing'"),
        (lambda self, x: x[:, 0].clone().requires_grad_(), "No gradient reaches any parameter"),
    ],
)
def test_models_that_cannot_be_trained(line, message):
    with pytest.raises(SpecError, match=message) as caught:
        check_model(Net(line), task_for("binary"), num_features=3)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_in_prediction_alone():
    def line(self, features):
        return self.layer(features if self.training else features[0]).squeeze(1)

    with pytest.raises(SpecError, match=r"raised on 1 row\(s\) in prediction"):
        check_model(Net(line), task_for("binary"), num_features=3)


def test_a_slice_of_one_row_is_tried_when_asked():
    model = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1), nn.Flatten(0))
    check_model(model, task_for("binary"), num_features=3)
    with pytest.raises(SpecError, match=r"raised on 1 row\(s\) in training"):
        check_model(model, task_for("binary"), num_features=3, row_counts=(1, 2))


def test_nothing_to_train_and_nothing_to_copy():
    with pytest.raises(SpecError, match="nothing to train"):
        check_model(nn.Flatten(0), task_for("binary"), num_features=1)
    model = Net(lambda self, x: self.layer(x).squeeze(1))
    model.lock = threading.Lock()
    with pytest.raises(SpecError, match="cannot be copied: TypeError"):
        check_model(model, task_for("binary"), num_features=3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.binary_cross_entropy_with_logits(o, y, reduction="sum"),
        lambda o, y: F.binary_cross_entropy_with_logits(o, y, reduction="none"),
        lambda o, y: F.softplus(-o * (2 * y - 1)),
    ],
)
def test_losses_that_can_be_used(loss):
    check_loss(user(loss))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (F.mse_loss, "gives the mean over 2 rows; expected the sum"),
        (lambda o, y: (o - o.mean()).square(), "gives .* not .* over 2 rows"),
        (lambda o, y: o[:, None] - y, r"gave \[2, 1\]|gave \[2, 2\]"),
        (lambda o, y: 0.5, "gave float for 2 row"),
        (lambda o, y: o.detach().sum(), "has no gradient"),
        (lambda o, y: o.sum().numpy(), r"raised on 2 row\(s\): RuntimeError.*test_probe\.py:"),
    ],
)
def test_losses_that_cannot_be_used(loss, message):
    with pytest.raises(SpecError, match=message) as caught:
        check_loss(user(loss))
    assert "\n" not in str(caught.value)


def test_multiclass_loss_is_tried_with_as_many_classes_as_there_are():
    weights = torch.arange(1.0, 8.0)
    loss = user(
        lambda o, y: F.cross_entropy(o, y, weight=weights, reduction="sum"), like="multiclass"
    )
    check_loss(replace(loss, label=LabelTarget(num_classes=7)))
    with pytest.raises(SpecError, match="raised on 2 row"):
        check_loss(replace(loss, label=LabelTarget(num_classes=6)))


@pytest.mark.parametrize(
    ("last", "kind", "word"),
    [
        (torch.sigmoid, "binary", "probabilities"),
        (F.logsigmoid, "binary", "log-probabilities"),
        (lambda x: x, "binary", None),
        (lambda x: x * 0, "binary", None),
        (torch.sigmoid, "regression", None),
        (lambda x: x.softmax(1), "multiclass", "probabilities"),
        (lambda x: x.log_softmax(1), "multiclass", "log-probabilities"),
        (torch.sigmoid, "multiclass", None),  # no shares of one whole
        (lambda x: x, "multiclass", None),
    ],
)
def test_outputs_that_are_no_logits_are_hinted_at(last, kind, word):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4 if kind == "multiclass" else 1)

        def forward(self, features):
            outputs = self.layer(features)
            return last(outputs if kind == "multiclass" else outputs.squeeze(1))

    torch.manual_seed(0)
    hint = looks_like(Own(), task_for(kind), num_features=3)
    assert (hint or "").startswith(word or "")
    assert (hint is None) == (word is None)


@pytest.mark.parametrize("classes", [2, 7])
def test_before_the_classes_are_counted_any_number_of_outputs_will_do(classes):
    model = nn.Linear(3, classes)
    assert check_model(model, task_for("multiclass"), num_features=3) == ()
    five = task_for("multiclass", label=LabelTarget(num_classes=5))
    with pytest.raises(SpecError, match=r"expected floating point of shape \[2, 5\]"):
        check_model(model, five, num_features=3)
