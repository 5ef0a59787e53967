import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from torch import nn

from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.spec.pipeline import Adam, Penalty, Schedule, Sgd
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.penalty import add_penalty_gradient, penalised, stop_at_zero
from ddlflow.train.schedules import factor
from ddlflow.train.tasks.table import task_for

RAW, TARGET = load_diabetes(return_X_y=True)
RAW = (RAW - RAW.mean(0)) / RAW.std(0)
ROWS = len(RAW)
CASES = {
    "ridge": (Ridge(alpha=10), Penalty(l2=10 / ROWS)),
    "lasso": (Lasso(alpha=1, tol=1e-8), Penalty(l1=2)),
    "elastic net": (ElasticNet(alpha=0.1, l1_ratio=0.5, tol=1e-8), Penalty(l1=0.1, l2=0.05)),
}


def coefficients(penalty, optimizer, *, epochs, batch_rows):
    """The weights of a linear regression on the diabetes data, trained by a plain loop."""
    model = Linear(num_features=10, category_sizes=[], num_outputs=1)
    features = torch.tensor(RAW, dtype=torch.float32)
    labels = torch.tensor(TARGET, dtype=torch.float32)
    loss_sum = task_for("regression").criterion.sum
    stepper = make_optimizer(optimizer, model.parameters(), device="cpu")
    weights = penalised(model)
    steps_per_epoch = -(-ROWS // batch_rows)
    random, step = torch.Generator().manual_seed(0), 0
    for _ in range(epochs):
        for rows in torch.randperm(ROWS, generator=random).split(batch_rows):
            stepper.param_groups[0]["lr"] = optimizer.lr * factor(
                Schedule(use="cosine"),
                step,
                steps_per_epoch=steps_per_epoch,
                total_steps=epochs * steps_per_epoch,
            )
            stepper.zero_grad()
            (loss_sum(model(features[rows]), labels[rows]) / len(rows)).backward()
            signs = add_penalty_gradient(weights, penalty)
            stepper.step()
            stop_at_zero(weights, signs)
            step += 1
    return model.weight.detach().numpy()[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": Adam(use="adam", lr=1.0), "epochs": 1500, "batch_rows": ROWS},
        {"optimizer": Sgd(use="sgd", lr=0.01, momentum=0.9), "epochs": 200, "batch_rows": 64},
    ],
    ids=["adam, all rows", "sgd, 64 rows"],
)
def test_within_one_percent_of_scikit_learn(case, training):
    reference, penalty = CASES[case]
    expected = reference.fit(RAW, TARGET).coef_
    found = coefficients(penalty, **training)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_lasso_has_scikit_learns_exact_zeros():
    reference, penalty = CASES["lasso"]
    expected = reference.fit(RAW, TARGET).coef_
    found = coefficients(penalty, Sgd(use="sgd", lr=0.1), epochs=600, batch_rows=ROWS)
    assert np.flatnonzero(expected == 0).size == 3
    assert np.array_equal(found == 0, expected == 0)


def test_logistic_regression_equals_scikit_learns():
    raw, labels = load_breast_cancer(return_X_y=True)
    raw = (raw - raw.mean(0)) / raw.std(0)
    rows = len(raw)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(raw, labels)
    model = Linear(num_features=30, category_sizes=[], num_outputs=1)
    loss_sum = task_for("binary").criterion.sum
    features = torch.tensor(raw, dtype=torch.float32)
    # scikit-learn's C = 1 adds 0.5 * sum w^2 to the sum over rows.
    weights, penalty = penalised(model), Penalty(l2=0.5 / rows)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def mean_loss():
        model.zero_grad()
        loss = loss_sum(model(features), torch.tensor(labels)) / rows
        loss.backward()
        add_penalty_gradient(weights, penalty)
        squares = sum(weight.detach().square().sum() for weight in weights)
        return loss.detach() + penalty.l2 * squares

    optimizer.step(mean_loss)
    found = model.weight.detach().numpy()
    assert np.abs(found - reference.coef_).max() < 0.01 * np.abs(reference.coef_).max()


def test_weights_and_embeddings_are_penalised_but_no_bias_and_no_norm():
    model = Mlp(num_features=2, category_sizes=[5], num_outputs=1, hidden=[4], batch_norm=True)
    model.after = nn.LayerNorm([2, 3])
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    model.tied = model.layers[0]
    expected = [model.embeddings.tables[0].weight, model.layers[0].weight, model.layers[-1].weight]
    assert {id(p) for p in penalised(model)} == {id(p) for p in expected}
    assert len(penalised(model)) == 3


def test_gradient_is_that_of_the_value():
    penalty = Penalty(l1=0.3, l2=0.7)
    weights = [torch.randn(3, 4, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    sum(0.3 * w.abs().sum() + 0.7 * w.square().sum() for w in weights).backward()
    expected = [w.grad.clone() for w in weights]
    for w in weights:
        w.grad = None
    weights[1].grad = torch.ones(2, 2)
    add_penalty_gradient(weights, penalty)
    torch.testing.assert_close(weights[0].grad, expected[0])
    torch.testing.assert_close(weights[1].grad, expected[1] + 1)


def test_a_weight_at_zero_feels_only_what_exceeds_l1():
    weight = torch.zeros(1, 4)
    weight.grad = torch.tensor([[0.2, -0.3, 1.0, -2.0]])
    add_penalty_gradient([weight], Penalty(l1=0.5))
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0, 0.5, -1.5]]))


def test_a_weight_that_would_cross_zero_stops_there():
    weight = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    weight.grad = torch.zeros(1, 4)
    signs = add_penalty_gradient([weight], Penalty(l1=0.5))
    weight.copy_(torch.tensor([[-0.1, 0.1, 0.3, 1.5]]))
    stop_at_zero([weight], signs)
    assert weight.tolist() == [[0.0, 0.0, pytest.approx(0.3), 1.5]]


def test_without_l1_nothing_is_cut():
    weight = torch.ones(1, 1)
    signs = add_penalty_gradient([weight], Penalty(l2=0.5))
    assert weight.grad.item() == 1.0
    weight.neg_()
    stop_at_zero([weight], signs)
    assert weight.item() == -1.0
