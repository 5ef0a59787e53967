"""Names the rows of a batch whose loss is not finite, so that a user can look at them."""

import numpy as np

from ddlflow.data.shards.manifest import Manifest, SplitName
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.rows import Arrays, Rows, ShardFiles
from ddlflow.data.shards.sequence import Indices
from ddlflow.store.store import Place

NAMED = 3


def name_rows(
    folder: Place, order: BatchOrder, epoch: int, step: int, *, split: SplitName = "train"
) -> str:
    """A sentence on the rows of global batch ``step`` of ``epoch`` (both from 0), of all lanes.

    The most extreme are named: those with the largest standardised feature or label.
    """
    manifest = Manifest.load(folder)
    wanted = order.batch(epoch, step)
    found = _raw(Rows(ShardFiles.in_folder(folder, manifest.shards_of(split)), None), wanted)
    labels = found["label"].astype(np.float64)
    extremes = np.abs(labels)
    if manifest.label.kind == "regression":
        known = manifest.label_statistics(split)
        extremes = np.abs(labels - known.mean[0]) / np.sqrt(max(float(known.variance[0]), 1e-30))
    columns = np.full(len(wanted), -1)
    if manifest.feature_names:
        statistics = manifest.statistics(split)
        features = found["features"].astype(np.float64)
        spread = np.sqrt(np.maximum(statistics.variance, 1e-30))
        far = np.abs(np.nan_to_num((features - statistics.mean) / spread))
        columns = np.where(far.max(1) > extremes, far.argmax(1), columns)
        extremes = np.maximum(extremes, far.max(1))
    named = []
    for k in np.argsort(-extremes, kind="stable")[:NAMED]:
        name, offset = manifest.label.name, manifest.label.offset
        value = float(labels[k])
        if columns[k] >= 0:
            name = manifest.feature_names[columns[k]]
            value = float(features[k, columns[k]])
            offset = manifest.columns.offsets.get(name, 0)
        shown = f"{value + offset:.15g}" if offset else f"{value:.6g}"  # as the source has it
        named.append(f"row {int(found['row'][k])} ({name} = {shown})")
    return (
        f"Of the batch's {len(wanted)} rows the most extreme in the source are {', '.join(named)}."
    )


def _raw(rows: Rows, wanted: Indices) -> Arrays:
    """Some rows as they are in the shards, with their numbers in the source."""
    found = rows.empty(len(wanted)) | {"row": np.empty(len(wanted), np.int64)}
    for at in np.argsort(wanted).tolist():  # shard by shard
        rows.read(int(wanted[at]), int(wanted[at]) + 1, found, at)
    return found
