"""What a model that looks at no feature would say."""

from torch import Tensor

from ddlflow.data.shards.manifest import Manifest
from ddlflow.train.tasks.task import TrainingLabels


def training_labels(manifest: Manifest, mean: float | None = None) -> TrainingLabels:
    """What the best model without a feature knows: the labels of the training rows.

    Args:
        manifest: of the data set.
        mean: of a number where rows have weights, the labels' weighted mean; None: their plain one.
    """
    if not manifest.label.classes:
        plain = float(manifest.label_statistics("train").mean[0])
        return TrainingLabels(mean=plain if mean is None else mean)
    sums, rows = manifest.weights("train")
    share = rows / sum(sums)
    return TrainingLabels(shares=tuple(own * share for own in sums))


def repeated(outputs: Tensor, rows: int) -> Tensor:
    """The same outputs for each row, in the shape that a model's have."""
    return outputs.expand(rows) if len(outputs) == 1 else outputs.expand(rows, -1)
