"""The rows of a split as a training reads them: mapped, checked, standardised."""

from collections.abc import Sequence
from pathlib import Path

from ddlflow.data.shards.manifest import Manifest, SplitName
from ddlflow.data.shards.manifest_parts import ShardFile
from ddlflow.data.shards.rows import Rows, ShardFiles, Standardisation
from ddlflow.data.shards.statistics import Statistics
from ddlflow.data.shards.verified import verified
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.models.standardise import Standardise, standardises
from ddlflow.train.pulse import Pulse


def standardisation_of(manifest: Manifest) -> Standardisation:
    """That of the training rows, in the very numbers that the model's buffers have."""
    return standardisation_by(manifest, manifest.statistics("train"))


def standardisation_by(
    manifest: Manifest, statistics: Statistics, fold: int | None = None
) -> Standardisation:
    """That of a data set's rows by the statistics of those that are trained on.

    Args:
        manifest: of the data set.
        statistics: of the features of the rows trained on.
        fold: whose training rows these are; None: all.
    """
    buffers = Standardise(statistics.mean, statistics.variance)
    groups = manifest.groups
    has_missing = any((g.statistics.count < g.statistics.rows).any() for g in groups)
    tensors = {}
    for field, own in standardises(manifest.tensors, manifest.tensor_statistics(fold=fold)):
        has_gaps = any(group.tensors[field.name].replaced for group in groups)
        tensors[field.name] = Standardisation(own.mean.numpy(), own.scale.numpy(), has_gaps)
    return Standardisation(buffers.mean.numpy(), buffers.scale.numpy(), has_missing, tensors)


def split_rows(
    folder: str,
    manifest: Manifest,
    split: SplitName,
    standardisation: Standardisation,
    pulse: Pulse,
    *,
    label: LabelScale = AS_IT_IS,
) -> Rows:
    """A split's rows. A shard may have to be read before it is used, to see that it is whole."""

    def locate(shards: Sequence[ShardFile]) -> list[Path]:
        with pulse.fetching():
            return verified(folder, shards)

    files = ShardFiles(tuple(manifest.shards_of(split)), locate)
    return Rows(files, standardisation, label.of_array)
