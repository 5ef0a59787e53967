"""A label as a task sees it: its classes or extent, how the net learns it, how much rows count."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.statistics import Statistics
from ddlflow.models.call import Batch
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.spec.pipeline import Train
from ddlflow.train.tasks.criterion import Criterion
from ddlflow.train.tasks.label import label_scale
from ddlflow.train.tasks.scores import Scores
from ddlflow.train.tasks.task import Loss
from ddlflow.train.tasks.weights import ALL_ALIKE, Weighting, weighting

LABEL, WEIGHT = "label", "weight"


@dataclass(frozen=True, slots=True)
class LabelTarget:
    """What is known of the label.

    Attributes:
        num_classes: None: not counted yet, or the label is a number.
        classes: their names, in the order of the outputs; none where they are not known.
        extent: of a number, its least and greatest value: what plots span.
        scale: how the net learns a number.
        weighting: how much rows count.
    """

    num_classes: int | None = None
    classes: tuple[Any, ...] = ()
    extent: tuple[float, float] = (0.0, 1.0)
    scale: LabelScale = AS_IT_IS
    weighting: Weighting = ALL_ALIKE

    def loss(self, criterion: Criterion, outputs: Tensor, batch: Batch) -> Loss:
        """The loss of a batch whose labels are as the net learns them.

        With weights it is the sum of weight times loss; what is counted is rows all the same.
        """
        labels = batch[LABEL]
        if self.weighting == ALL_ALIKE:
            return Loss(criterion.sum(outputs, labels), len(labels))
        weights = self.weighting.of_loss(labels, batch.get(WEIGHT))
        return Loss(criterion.weighted_sum(outputs, labels, weights), len(labels))

    def score(self, scores: Scores, criterion: Criterion, outputs: Tensor, batch: Batch) -> None:
        """Adds a batch, whose labels are as the shards hold them, to scores in their units."""
        labels, scale = batch[LABEL], self.scale
        learnt, given = scale.of_labels(labels), scale.to_labels(outputs)
        if self.weighting == ALL_ALIKE:
            loss = criterion.sum(outputs, learnt)
            scores.update(given, labels, loss.double() * scale.loss_unit)
            return
        own = batch.get(WEIGHT)
        weights = self.weighting.of_loss(labels, own)
        loss = criterion.weighted_sum(outputs, learnt, weights).double() * scale.loss_unit
        total = weights.sum(dtype=weights.double().dtype)
        scores.update(given, labels, loss, self.weighting.of_scores(own), total)


UNKNOWN = LabelTarget()  # nothing is known yet


def label_target(
    train: Train,
    manifest: Manifest,
    *,
    fold: int | None = None,
    statistics: Statistics | None = None,
) -> LabelTarget:
    """The label of a data set, by the rows that are trained on.

    Args:
        train: the pipeline's ``train`` section.
        manifest: of the data set.
        fold: whose training rows; None: all.
        statistics: of these rows' labels; None: all training rows'.

    Raises:
        SpecError: ``train.class_weights`` names what is no class.
    """
    label, known = manifest.label, manifest.label_statistics("train")
    is_number = not label.classes
    return LabelTarget(
        num_classes=None if is_number else len(label.classes),
        classes=tuple(label.classes),
        # A regression's plots span all training labels, whatever the fold: they can be merged.
        extent=(float(known.minimum[0]), float(known.maximum[0])) if is_number else (0.0, 1.0),
        scale=label_scale(train, manifest, known if statistics is None else statistics),
        weighting=weighting(train, manifest, fold),
    )
