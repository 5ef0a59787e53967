import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import UserObjective
from ddlflow.train.tasks.regression import RegressionTask
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget

ROWS = 50


def made(kind):
    random = torch.Generator().manual_seed(0)
    shape = (ROWS, 4) if kind == "multiclass" else (ROWS,)
    outputs = torch.randn(shape, generator=random)
    if kind == "regression":
        return outputs, torch.randn(ROWS, generator=random)
    return outputs, torch.randint(4 if kind == "multiclass" else 2, (ROWS,), generator=random)


def user(function, like="regression", **arguments):
    return task_for(UserObjective(use="m:f", like=like, **arguments), function)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_loss_is_the_sum_that_scikit_learn_finds(kind):
    objective = task_for(kind)
    outputs, labels = made(kind)
    predicted = {
        key: value.double().numpy() for key, value in objective.predictions(outputs).items()
    }
    if kind == "binary":
        mean = log_loss(labels, predicted["probability"])
    elif kind == "multiclass":
        rows = predicted["probabilities"]
        mean = log_loss(labels, rows / rows.sum(1, keepdims=True), labels=range(4))
    else:
        mean = mean_squared_error(labels, predicted["prediction"])
    assert objective.criterion.sum(outputs, labels).item() == pytest.approx(mean * ROWS, rel=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32])
def test_labels_of_any_dtype(kind, dtype):
    objective = task_for(kind)
    outputs, labels = made(kind)
    whole = labels.round()
    as_read = objective.criterion.sum(outputs, whole.to(dtype))
    assert torch.equal(as_read, objective.criterion.sum(outputs, whole.double()))


def test_predictions():
    outputs, _ = made("multiclass")
    many = task_for("multiclass").predictions(outputs)
    assert many["probabilities"].sum(1).numpy() == pytest.approx(np.ones(ROWS), abs=1e-6)
    assert torch.equal(many["index"], many["probabilities"].argmax(1))
    outputs, _ = made("binary")
    probability = task_for("binary").predictions(outputs)["probability"]
    assert probability.dtype == torch.float32
    assert torch.equal(probability > 0.5, outputs > 0)


def test_number_of_outputs():
    assert task_for("binary").num_outputs == 1
    assert task_for("regression").num_outputs == 1
    assert task_for("multiclass").num_outputs is None  # not counted yet
    assert task_for("multiclass", label=LabelTarget(num_classes=7)).num_outputs == 7
    with pytest.raises(SpecError, match="reads the label as classes, but 1 are known"):
        assert task_for("multiclass", label=LabelTarget(num_classes=1)).num_outputs


@pytest.mark.parametrize("shape", ["scalar", "rows"])
def test_user_function_with_arguments(shape):
    def huber(outputs, labels, *, delta):
        rows = torch.nn.functional.huber_loss(outputs, labels, reduction="none", delta=delta)
        return rows.sum() if shape == "scalar" else rows

    objective = user(huber, delta=0.5)
    outputs, labels = made("regression")
    rows = torch.nn.functional.huber_loss(outputs, labels, reduction="none", delta=0.5)
    assert objective.name == "m:f"
    assert isinstance(objective, RegressionTask)
    torch.testing.assert_close(objective.criterion.sum(outputs, labels), rows.sum())


def test_user_function_whose_arguments_do_not_fit():
    with pytest.raises(SpecError, match="m:f has no parameter 'detla'"):
        user(lambda outputs, labels, delta=1.0: outputs, detla=0.5)
    with pytest.raises(SpecError, match="m:f needs 'delta'"):
        user(lambda outputs, labels, delta: outputs)
    with pytest.raises(SpecError, match="has not been resolved"):
        user(None)
