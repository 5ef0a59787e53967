"""Names the rows of a batch whose loss is not finite, so that a user can look at them."""

from pathlib import Path

import numpy as np

from ddlflow.data.shards import order
from ddlflow.data.shards.manifest import Manifest, SplitName
from ddlflow.data.shards.shard import map_shard

NAMED = 3


def name_rows(
    folder: Path, *, batch_rows: int, seed: int, epoch: int, step: int, split: SplitName = "train"
) -> str:
    """A sentence on the rows of global batch ``step`` of ``epoch`` (both from 0).

    The most extreme are named: those with the largest standardised feature or label.
    """
    manifest = Manifest.load(folder)
    shards = [map_shard(folder / shard.path) for shard in manifest.shards_of(split)]
    starts = np.cumsum([0, *(len(shard["label"]) for shard in shards)])
    wanted = _indices(int(starts[-1]), batch_rows=batch_rows, seed=seed, epoch=epoch, step=step)
    which = np.searchsorted(starts, wanted, side="right") - 1
    at = [(shards[s], int(i - starts[s])) for s, i in zip(which, wanted, strict=True)]
    extremes = np.abs([float(shard["label"][i]) for shard, i in at])
    if manifest.label.kind == "regression":
        known = manifest.label_statistics(split)
        labels = np.array([float(shard["label"][i]) for shard, i in at])
        extremes = np.abs(labels - known.mean[0]) / np.sqrt(max(float(known.variance[0]), 1e-30))
    columns = np.full(len(at), -1)
    if manifest.feature_names:
        statistics = manifest.statistics(split)
        features = np.stack([shard["features"][i] for shard, i in at]).astype(np.float64)
        spread = np.sqrt(np.maximum(statistics.variance, 1e-30))
        far = np.abs(np.nan_to_num((features - statistics.mean) / spread))
        columns = np.where(far.max(1) > extremes, far.argmax(1), columns)
        extremes = np.maximum(extremes, far.max(1))
    named = []
    for k in np.argsort(-extremes, kind="stable")[:NAMED]:
        shard, i = at[k]
        name, offset = manifest.label.name, manifest.label.offset
        value = float(shard["label"][i])
        if columns[k] >= 0:
            name = manifest.feature_names[columns[k]]
            value = float(shard["features"][i][columns[k]])
            offset = manifest.columns.offsets.get(name, 0)
        shown = f"{value + offset:.15g}" if offset else f"{value:.6g}"  # as the source has it
        named.append(f"row {int(shard['row'][i])} ({name} = {shown})")
    return f"Of the batch's {len(at)} rows the most extreme in the source are {', '.join(named)}."


def _indices(rows: int, *, batch_rows: int, seed: int, epoch: int, step: int) -> order.Indices:
    """The data's rows of a global batch."""
    start, stop = step * batch_rows, min(rows, (step + 1) * batch_rows)
    found = []
    for window in order.windows(rows, seed=seed, epoch=epoch, position=start):
        low, high = max(start - window.start, 0), stop - window.start
        if high <= 0:
            break
        found.append(window.indices()[low:high])
    return np.concatenate(found)
