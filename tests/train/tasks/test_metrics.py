"""Scores against scikit-learn and torchmetrics, on the same rows held in one piece."""

import json
import math
import pickle
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as exact
from torchmetrics.functional import classification as tm

from ddlflow.train.tasks.binary_scores import BINS, BinaryScores, _bin_of_logit, _logit_edges
from ddlflow.train.tasks.measures import measures_of
from ddlflow.train.tasks.multiclass_scores import MulticlassScores
from ddlflow.train.tasks.regression_scores import RegressionScores
from ddlflow.train.tasks.scores import PackedScores, Scores
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.target import LabelTarget


@pytest.fixture(autouse=True)
def one_thread():
    """Many small tensors: threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KINDS = ("binary", "multiclass", "regression")


def rows_of(kind, seed, rows=4000):
    generator = torch.Generator().manual_seed(seed)
    if kind == "multiclass":
        labels = torch.randint(0, 5, (rows,), generator=generator)
        logits = torch.randn(rows, 5, generator=generator)
        return logits + 2 * torch.nn.functional.one_hot(labels, 5), labels
    noise = torch.randn(rows, generator=generator)
    if kind == "binary":
        labels = (torch.rand(rows, generator=generator) < 0.3).float()
        return noise + 1.5 * labels, labels
    labels = torch.rand(rows, generator=generator) * 10 + 90
    return labels + noise, labels


def empty(kind, num_classes=5) -> Scores:
    label = LabelTarget(num_classes=num_classes, extent=(90.0, 100.0))
    return task_for(kind, label=label).empty_scores()


def scored(kind, outputs, labels, loss_sum=0.0) -> Scores:
    scores = empty(kind)
    scores.update(outputs, labels, loss_sum)
    return scores


def binary(logits, labels):
    scores = BinaryScores()
    scores.update(torch.as_tensor(logits), torch.as_tensor(labels, dtype=torch.float32), 0.0)
    return scores


# ---- all kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_computed_and_have_a_direction(kind):
    result = scored(kind, *rows_of(kind, 0)).compute()
    assert list(result) == [*measures_of(kind).names, "rows"]
    assert all(math.isfinite(value) for value in result.values())
    assert {measures_of(kind).better(name) for name in measures_of(kind).names} <= {
        "higher",
        "lower",
    }
    assert result["rows"] == 4000


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_over_rows_of_given_sums(kind):
    outputs, labels = rows_of(kind, 0)
    scores = scored(kind, outputs, labels, torch.tensor(6000.0))
    scores.update(outputs, labels, 2000.0)
    assert scores.compute()["loss"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 4000), max_size=4).map(sorted))
@settings(max_examples=8, deadline=None)
def test_parts_merged_in_any_way_are_the_whole(kind, cuts):
    outputs, labels = rows_of(kind, 1)
    whole = scored(kind, outputs, labels, 10.0)
    ends = [0, *cuts, 4000]
    parts = [
        scored(kind, outputs[a:b], labels[a:b], 10.0 if a == 0 and b > 0 else 0.0)
        for a, b in pairwise(ends)
    ]
    merged, unpacked = (empty(kind) for _ in range(2))
    for part in reversed(parts):
        merged.merge(pickle.loads(pickle.dumps(part)))
        unpacked.merge_packed(PackedScores(**json.loads(json.dumps(asdict(part.packed())))))
    for result in (merged, unpacked):
        assert torch.equal(result.counts, whole.counts)
        torch.testing.assert_close(result.sums[1:], whole.sums[1:], rtol=1e-8, atol=0)
    assert merged.compute()["rows"] == 4000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_make_nan_and_are_counted(kind, bad):
    outputs, labels = rows_of(kind, 2)
    outputs[7] = bad
    scores = scored(kind, outputs, labels)
    result = scores.compute()
    assert result["rows"] == 4000
    assert result["unscored_rows"] == 1
    assert all(math.isnan(result[name]) for name in measures_of(kind).names if name != "loss")
    json.dumps(asdict(scores.curves()), allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_are_nan(kind):
    scores = empty(kind)
    result = scores.compute()
    assert result["rows"] == 0
    assert all(math.isnan(result[name]) for name in measures_of(kind).names)
    json.dumps(asdict(scores.curves()))


@pytest.mark.parametrize("kind", KINDS)
def test_update_takes_no_part_in_autograd(kind):
    outputs, labels = rows_of(kind, 3)
    scores = scored(kind, outputs.requires_grad_(), labels, outputs.sum())
    assert not scores.sums.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_json(kind):
    json.dumps(asdict(scored(kind, *rows_of(kind, 4)).curves()), allow_nan=False)


def test_states_of_different_kinds_do_not_merge():
    with pytest.raises(ValueError, match="one kind of label"):
        empty("multiclass", 3).merge(empty("multiclass", 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_counts_are_those_of_the_cpu(kind):
    outputs, labels = rows_of(kind, 5)
    there = scored(kind, outputs.cuda(), labels.cuda())
    here = scored(kind, outputs, labels)
    assert torch.equal(there.counts.cpu(), here.counts)
    here.merge(there)
    assert here.compute()["rows"] == 8000


# ---- binary --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_rank_metrics_are_within_1e_4_of_the_exact_ones(share, spread):
    generator = torch.Generator().manual_seed(11)
    labels = (torch.rand(200_000, generator=generator) < share).float()
    logits = torch.randn(200_000, generator=generator) + labels + math.log(share / (1 - share))
    logits *= spread
    result = binary(logits, labels).compute()
    assert result["auroc"] == pytest.approx(exact.roc_auc_score(labels, logits), abs=2e-5)
    precision = exact.average_precision_score(labels, logits)
    assert result["average_precision"] == pytest.approx(precision, abs=1e-4)


logit_lists = st.lists(
    st.tuples(st.floats(-300, 300, width=32) | st.sampled_from([0.0, 0.5, -2.0]), st.booleans()),
    min_size=2,
    max_size=80,
).filter(lambda rows: len({label for _, label in rows}) == 2)


@given(rows=logit_lists)
def test_auroc_is_within_its_own_bound(rows):
    logits, labels = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    scores = binary(logits, labels)
    bound = scores.curves().auroc_within
    error = abs(scores.compute()["auroc"] - exact.roc_auc_score(labels, logits))
    assert error <= bound + 1e-12


@given(rows=logit_lists)
def test_binned_logits_have_exact_rank_metrics(rows):
    logits, labels = (
        torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True)
    )
    result = binary(logits, labels).compute()
    ranks = _bin_of_logit(logits).float()  # the order that the histogram keeps, ties included
    assert result["auroc"] == pytest.approx(exact.roc_auc_score(labels, ranks), abs=1e-12)
    precision = exact.average_precision_score(labels, ranks)
    assert result["average_precision"] == pytest.approx(precision, abs=1e-12)


def test_all_tied_scores_rank_nothing():
    result = binary(torch.full((100,), -1.25), (torch.arange(100) < 20).float()).compute()
    assert result["auroc"] == 0.5
    assert result["average_precision"] == pytest.approx(0.2)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_no_auroc(label):
    scores = binary(torch.randn(50), torch.full((50,), label))
    result, curves = scores.compute(), scores.curves()
    assert math.isnan(result["auroc"])
    assert math.isnan(result["average_precision"]) == (label == 0)
    assert math.isfinite(result["log_loss"])
    assert curves.roc is None
    assert curves.precision_recall is None


def test_ratios_are_those_of_torchmetrics_and_sklearn():
    logits, labels = rows_of("binary", 6)
    result = binary(logits.unsqueeze(1), labels).compute()
    probability = torch.sigmoid(logits)
    assert result["accuracy"] == pytest.approx(float(tm.binary_accuracy(probability, labels)))
    assert result["f1"] == pytest.approx(float(tm.binary_f1_score(probability, labels)))
    assert result["log_loss"] == pytest.approx(exact.log_loss(labels, probability), rel=1e-6)
    assert result["brier"] == pytest.approx(exact.brier_score_loss(labels, probability), rel=1e-6)


def test_bins_are_where_their_edges_say():
    edges = _logit_edges()
    assert len(edges) == BINS + 1
    assert bool((edges.diff() > 0).all())
    middle = ((edges[1:] + edges[:-1]) / 2).float()
    assert torch.equal(_bin_of_logit(middle), torch.arange(BINS))
    beyond = _bin_of_logit(torch.tensor([-3e38, -255.0, -0.0, 0.0, 255.0, 3e38]))
    assert beyond.tolist() == [0, 0, BINS // 2, BINS // 2, BINS - 1, BINS - 1]


def test_roc_points_lie_on_the_exact_curve():
    logits, labels = rows_of("binary", 7)
    roc = binary(logits, labels).curves().roc
    assert (roc.fpr[0], roc.tpr[0], roc.fpr[-1], roc.tpr[-1]) == (0, 0, 1, 1)
    assert len(roc.fpr) <= 801
    fpr, tpr, _ = exact.roc_curve(labels, logits, drop_intermediate=False)
    points = np.stack([roc.fpr, roc.tpr], 1)[:, None]
    nearest = np.abs(points - np.stack([fpr, tpr], 1)).max(2).min(1)
    assert nearest.max() < 1e-3
    assert exact.auc(roc.fpr, roc.tpr) == pytest.approx(exact.auc(fpr, tpr), abs=1e-4)


def test_precision_recall_points_lie_on_the_exact_curve():
    logits, labels = rows_of("binary", 7)
    curve = binary(logits, labels).curves().precision_recall
    precision, recall, _ = exact.precision_recall_curve(labels, logits)
    known = {(round(r, 4), round(p, 2)) for r, p in zip(recall, precision, strict=True)}
    found = [
        (round(r, 4), round(p, 2)) in known
        for r, p in zip(curve.recall, curve.precision, strict=True)
    ]
    assert np.mean(found) > 0.8  # the others lie in a bin with a positive and a negative row


def test_reliability_and_scores_hold_every_row():
    logits, labels = rows_of("binary", 8)
    curves = binary(logits, labels).curves()
    reliability = curves.reliability
    assert sum(reliability.rows) == 4000
    assert max(reliability.rows) - min(reliability.rows) < 20
    observed = np.dot(reliability.observed, reliability.rows)
    assert observed == pytest.approx(float(labels.sum()))
    predicted = np.dot(reliability.predicted, reliability.rows)
    assert predicted == pytest.approx(float(torch.sigmoid(logits).sum()), rel=1e-4)
    assert np.sum(curves.scores.counts, axis=1).tolist() == [
        int((labels == 0).sum()),
        int(labels.sum()),
    ]
    assert curves.confusion == exact.confusion_matrix(labels, logits > 0).tolist()


# ---- multiclass ----------------------------------------------------------------------------


@pytest.mark.parametrize("classes_seen", [5, 3])
def test_multiclass_is_that_of_torchmetrics_and_sklearn(classes_seen):
    logits, labels = rows_of("multiclass", 9)
    labels = labels % classes_seen
    logits[:, classes_seen:] -= 1000
    scores = scored("multiclass", logits, labels)
    result = scores.compute()
    predicted = logits.argmax(1)
    assert scores.curves().confusion == (
        exact.confusion_matrix(labels, predicted, labels=range(5)).tolist()
    )
    accuracy = tm.multiclass_accuracy(logits, labels, 5, average="micro")
    assert result["accuracy"] == pytest.approx(float(accuracy))
    assert result["f1_macro"] == pytest.approx(exact.f1_score(labels, predicted, average="macro"))
    probability = torch.softmax(logits.double(), 1)
    log_loss = exact.log_loss(labels, probability, labels=range(5))
    assert result["log_loss"] == pytest.approx(log_loss, rel=1e-6)


def test_state_of_many_classes_is_their_square():
    assert len(MulticlassScores(100).counts) == 10_001


# ---- regression ----------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1e6, 1.0), (0.0, 1e-6)])
def test_regression_is_that_of_sklearn(shift, scale):
    predicted, labels = rows_of("regression", 10)
    predicted, labels = predicted * scale + shift, labels * scale + shift
    scores = RegressionScores(float(labels.min()), float(labels.max()))
    scores.update(predicted.unsqueeze(1), labels, 0.0)
    result = scores.compute()
    true, given_ = labels.double().numpy(), predicted.double().numpy()
    assert result["mse"] == pytest.approx(exact.mean_squared_error(true, given_))
    assert result["rmse"] == pytest.approx(exact.root_mean_squared_error(true, given_))
    assert result["mae"] == pytest.approx(exact.mean_absolute_error(true, given_))
    assert result["r2"] == pytest.approx(exact.r2_score(true, given_), abs=1e-9)


def test_constant_label_has_no_r2():
    scores = RegressionScores(3.0, 3.0)
    scores.update(torch.linspace(2, 4, 10), torch.full((10,), 3.0), 0.0)
    assert math.isnan(scores.compute()["r2"])
    assert np.sum(scores.curves().predicted_against_true.counts) > 0


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_residual_histogram_holds_every_row_and_most_of_them_inside(spread):
    predicted, labels = rows_of("regression", 12)
    predicted = labels + (predicted - labels) * spread
    curves = scored("regression", predicted, labels).curves()
    histogram, plane = curves.residuals, curves.predicted_against_true
    inside = sum(histogram.counts)
    assert inside + histogram.below + histogram.above == 4000
    # A residual beyond the label's whole range is drawn as below or above.
    reachable = float(((predicted - labels).abs() < 10).float().mean())
    assert inside >= min(0.99, reachable - 0.01) * 4000
    assert np.sum(plane.counts) + plane.outside == 4000
    middle = np.add(histogram.edges[1:], histogram.edges[:-1]) / 2
    if spread == 1.0:
        mean = np.dot(middle, histogram.counts) / inside
        assert mean == pytest.approx(float((predicted - labels).mean()), abs=0.05)


def test_greatest_label_is_inside_the_plane():
    scores = RegressionScores(0.0, 1.0)
    ends = torch.tensor([0.0, 1.0])
    scores.update(ends, ends, 0.0)
    plane = scores.curves().predicted_against_true
    assert (plane.counts[0][0], plane.counts[-1][-1], plane.outside) == (1, 1, 0)
