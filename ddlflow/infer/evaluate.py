"""A trained model's scores on a split: each shard's on a worker, merged in the shards' order."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch

from ddlflow.data.offsets import Number
from ddlflow.data.scored import Curves, FeatureCounts, Plane, RegressionCurves, Scored
from ddlflow.data.shards.manifest import Manifest, Shard, SplitName
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.infer.baseline import repeated, training_labels
from ddlflow.infer.model import PASS_ROWS, load_model
from ddlflow.infer.notes import of_names
from ddlflow.infer.predict import Map
from ddlflow.spec.pipeline import Train
from ddlflow.store.store import Place, store_of
from ddlflow.train.tasks.histogram import FeatureHistogram, histogram_edges, histogram_range
from ddlflow.train.tasks.scores import PackedScores
from ddlflow.train.tasks.table import BUILT_IN
from ddlflow.train.tasks.target import LabelTarget, label_target
from ddlflow.train.tasks.task import TrainingLabels

Drawn = TypeVar("Drawn", Plane, FeatureCounts)


@dataclass(frozen=True, slots=True)
class ShardToScore:
    """One shard to score: small values that travel to a worker."""

    model: str
    dataset: str
    digest: str  # of the data set
    shard: Shard
    known: TrainingLabels  # by the baseline
    label: LabelTarget
    feature: str | None  # to draw a histogram of
    threads: int


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """What scoring a shard gave: small values that travel back.

    Attributes:
        scores: of the model.
        baseline: of the model without features.
        histogram: counts of ``FeatureHistogram``, where the task names a feature.
    """

    scores: PackedScores
    baseline: PackedScores
    histogram: list[list[int]] | None


def evaluate(
    model_folder: Place,
    dataset: Place,
    split: SplitName,
    *,
    spec: Train,
    feature: str | None,
    threads: int,
    map_over: Map,
) -> Scored:
    """Scores a model on a split of a data set.

    Args:
        model_folder: of the model.
        dataset: the folder of the data set.
        split: whose rows.
        spec: how it was trained.
        feature: to draw a histogram of.
        threads: of each worker.
        map_over: the engine's.
    """
    manifest = Manifest.load(dataset)
    known = training_labels(manifest, manifest.weighted_mean("train"))
    where = (store_of(model_folder).location, store_of(dataset).location, manifest.digest)
    label = label_target(spec, manifest)
    task = BUILT_IN[spec.labels](label=label)
    tasks = [
        ShardToScore(*where, shard, known, label, feature, threads)
        for shard in manifest.shards_of(split)
    ]
    scores, baseline = task.empty_scores(), task.empty_scores()
    histogram = _histogram(manifest, feature) if feature else None
    for scored in map_over(score_shard, tasks, "evaluate"):
        scores.merge_packed(scored.scores)
        baseline.merge_packed(scored.baseline)
        if histogram is not None:
            histogram.counts += torch.tensor(scored.histogram)
    return Scored(
        metrics=scores.compute(),
        baseline=of_names(task.measures, baseline.compute()),
        predicted_classes=scores.predicted_classes(),
        curves=_in_source(scores.curves(), manifest.label.offset),
        histogram=None
        if histogram is None
        else _shifted(histogram.curves(), manifest.columns.offsets.get(feature or "", 0)),
    )


def _in_source(curves: Curves, offset: Number) -> Curves:
    """A regression's plane of true and predicted values in the source's units."""
    if offset and isinstance(curves, RegressionCurves):
        plane = _shifted(curves.predicted_against_true, offset)
        return replace(curves, predicted_against_true=plane)
    return curves


def _shifted(drawn: Drawn, offset: Number) -> Drawn:
    """What is drawn over an axis of the shards' numbers, over one of the source's."""
    return replace(drawn, edges=[edge + offset for edge in drawn.edges])


def score_shard(task: ShardToScore) -> ScoredShard:
    """The packed scores of one shard, and its histogram's counts."""
    torch.set_num_threads(task.threads)
    manifest = _manifest(task.dataset, task.digest)
    model = load_model(task.model, trust_code=True)  # it is this pipeline's own
    # The model's own way to learn the label, and the rows' weights.
    of_model = replace(model.task, label=replace(task.label, scale=model.predictor.label))
    scores, baseline = of_model.empty_scores(), of_model.empty_scores()
    constant = model.predictor.label.of_labels(of_model.baseline(task.known).float())
    rows = Rows(ShardFiles.in_folder(task.dataset, [task.shard]), None)
    step = rows.piece_rows(PASS_ROWS)
    with torch.inference_mode():
        for start in range(0, rows.rows, step):
            stop = min(start + step, rows.rows)
            raw = rows.batch(start, stop, rows.empty(stop - start))
            part = {name: torch.from_numpy(array) for name, array in raw.items()}
            of_model.score(scores, model.predictor.outputs(part), part)
            of_model.score(baseline, repeated(constant, len(part["label"])), part)
    counts = None
    if task.feature is not None:
        histogram = _histogram(manifest, task.feature)
        column = manifest.feature_names.index(task.feature)
        columns = rows.shard(0)
        values, of_rows = columns["features"][:, column].copy(), columns["label"].copy()
        histogram.update(torch.from_numpy(values), torch.from_numpy(of_rows))
        counts = histogram.counts.tolist()
    return ScoredShard(scores.packed(), baseline.packed(), counts)


@lru_cache(maxsize=2)
def _manifest(dataset: str, digest: str) -> Manifest:
    """A worker reads a manifest once, and again where the data was prepared anew."""
    return Manifest.load(dataset)


def _histogram(manifest: Manifest, feature: str) -> FeatureHistogram:
    """Empty, with edges from the training rows' statistics."""
    column = manifest.feature_names.index(feature)
    known = manifest.statistics("train")
    span = histogram_range(
        float(known.mean[column]),
        float(known.variance[column]) ** 0.5,
        float(known.minimum[column]),
        float(known.maximum[column]),
    )
    return FeatureHistogram(feature, histogram_edges(*span), max(1, len(manifest.label.classes)))
