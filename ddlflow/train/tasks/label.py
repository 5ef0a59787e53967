"""How a net learns its label, by the pipeline's train section and the rows trained on."""

import math

import numpy as np

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.statistics import Statistics
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.spec.pipeline import Train


def label_scale(train: Train, manifest: Manifest, statistics: Statistics) -> LabelScale:
    """How the net learns the label.

    Args:
        train: the pipeline's train section.
        manifest: of the data set.
        statistics: of the labels of the rows trained on, from ``Manifest.label_statistics``.
    """
    offset = float(manifest.label.offset)
    if not train.standardises_label:  # a class, or a number that a user's loss gets as it is
        return LabelScale(mean=-offset, offset=offset) if offset else AS_IT_IS
    mean, deviation = float(statistics.mean[0]), float(np.sqrt(statistics.variance[0]))
    if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
        mean, deviation = 0.0, 1.0  # a fold whose labels are all alike has nothing to learn
    squared = train.objective == "regression"
    return LabelScale(mean, deviation, offset, deviation**2 if squared else 1.0)
