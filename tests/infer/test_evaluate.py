"""Scores over shards: what scikit-learn says of the predictions, whatever the map."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics as reference

from ddlflow.data.scored import MulticlassCurves, Scored
from ddlflow.data.shards.shard import map_shard
from ddlflow.infer import evaluate as module
from ddlflow.infer.evaluate import evaluate
from ddlflow.infer.model import load_model
from ddlflow.spec.pipeline import Train


def in_turn(function: Any, items: Any, _: str, /) -> Any:
    return map(function, items)


def backwards(function: Any, items: Any, _: str, /) -> Any:
    return reversed([function(item) for item in reversed(items)])


def scored(made: Any, split: Any = "test", **more: Any) -> Scored:
    standard = {"spec": Train(objective=made.manifest.label.kind), "feature": None, "threads": 1}
    standard |= {"map_over": in_turn}
    return evaluate(made.folder, made.dataset, split, **(standard | more))


def predictions(made: Any, split: str) -> tuple[np.ndarray, pa.RecordBatch]:
    """The labels of a split's rows of the source, and what the model says to these rows."""
    shards = made.manifest.shards_of(split)
    numbers = np.concatenate([map_shard(made.dataset / shard.path)["row"] for shard in shards])
    (batch,) = made.source.take(pa.array(numbers)).combine_chunks().to_batches()
    found = load_model(made.folder).predict(batch)
    return batch["y"].to_numpy(zero_copy_only=False), found


def test_binary_metrics_are_scikit_learns(trained: Callable[..., Any]) -> None:
    made = trained()
    truth, found = predictions(made, "test")
    positive, score = truth == "yes", found["probability"].to_numpy().astype(float)
    chosen = found["prediction"].to_numpy(zero_copy_only=False) == "yes"
    metrics = scored(made).metrics
    assert metrics["rows"] == len(truth) == 90
    wanted = {
        "auroc": reference.roc_auc_score(positive, score),
        "average_precision": reference.average_precision_score(positive, score),
        "accuracy": reference.accuracy_score(positive, chosen),
        "f1": reference.f1_score(positive, chosen),
        "log_loss": reference.log_loss(positive, score),
        "brier": reference.brier_score_loss(positive, score),
    }
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, abs=2e-3)
    assert metrics["loss"] == pytest.approx(wanted["log_loss"], rel=1e-5)


def test_multiclass_metrics_are_scikit_learns(trained: Callable[..., Any]) -> None:
    made = trained("multiclass")
    truth, found = predictions(made, "test")
    chosen = found["prediction"].to_numpy()
    of_class = [found[f"probability_{name}"].to_numpy() for name in (0, 10, 20)]
    probabilities = np.stack(of_class, axis=1).astype(float)
    probabilities /= probabilities.sum(1, keepdims=True)  # to more digits than float32 has
    result = scored(made)
    wanted = {
        "accuracy": reference.accuracy_score(truth, chosen),
        "f1_macro": reference.f1_score(truth, chosen, average="macro"),
        "log_loss": reference.log_loss(truth, probabilities),
    }
    metrics = result.metrics
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    confusion = reference.confusion_matrix(truth, chosen)
    assert isinstance(result.curves, MulticlassCurves)
    np.testing.assert_array_equal(result.curves.confusion, confusion)


def test_regression_metrics_are_scikit_learns(trained: Callable[..., Any]) -> None:
    made = trained("regression")
    truth, found = predictions(made, "test")
    value = found["prediction"].to_numpy()
    wanted = {
        "mse": reference.mean_squared_error(truth, value),
        "mae": reference.mean_absolute_error(truth, value),
        "r2": reference.r2_score(truth, value),
    }
    metrics = scored(made).metrics
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_on_the_validation_rows_it_is_what_training_said(
    trained: Callable[..., Any], labels: str
) -> None:
    made = trained(labels)
    metrics = scored(made, "validation").metrics
    said = made.result["metrics"]
    assert {name: metrics[name] for name in said} == pytest.approx(said, rel=1e-5)


@pytest.mark.parametrize("labels", ["binary", "regression"])
def test_the_map_and_the_size_of_a_pass_do_not_enter(
    trained: Callable[..., Any], labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(labels)
    whole = scored(made, "train", feature="a")
    assert scored(made, "train", feature="a", map_over=backwards) == whole
    monkeypatch.setattr(module, "PASS_ROWS", 37)
    parts = scored(made, "train", feature="a")
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert parts.histogram == whole.histogram


def test_a_histogram_counts_each_class_of_the_splits_rows(trained: Callable[..., Any]) -> None:
    made = trained()
    result = scored(made, "train", feature="b")
    histogram = result.histogram
    assert histogram is not None
    assert histogram.feature == "b"
    shards = [map_shard(made.dataset / s.path) for s in made.manifest.shards_of("train")]
    column = made.manifest.feature_names.index("b")
    values = np.concatenate([shard["features"][:, column] for shard in shards])
    labels = np.concatenate([shard["label"] for shard in shards])
    edges = np.array(histogram.edges)
    for index, counts in enumerate(histogram.counts):
        inside = values[(labels == index) & (values >= edges[0]) & (values <= edges[-1])]
        assert sum(counts) == len(inside) > 0
    assert scored(made).histogram is None


def test_data_of_categories_alone(trained: Callable[..., Any]) -> None:
    made = trained("binary", ["town", "year"])
    metrics = scored(made).metrics
    assert metrics["rows"] == 90
    assert metrics["auroc"] > 0.5


def test_a_shard_is_scored_apart_and_small_to_send(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    import json

    made = trained()
    tasks: list[Any] = []

    def kept(function: Any, items: Any, name: str, /) -> Any:
        tasks.extend(items)
        assert name == "evaluate"
        return map(function, items)

    scored(made, "train", map_over=kept)
    assert [task.shard for task in tasks] == made.manifest.shards_of("train")
    packed = json.dumps(asdict(module.score_shard(replace(tasks[0], feature="a"))))
    assert len(packed) < 100_000
