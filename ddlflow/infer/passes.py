"""Encoded rows on their way through a model, some at a time."""

from collections.abc import Iterator

import numpy as np
import torch

from ddlflow.data.columns import Columns, Encoded
from ddlflow.data.fields import LENGTH
from ddlflow.data.padding import padded

PASS_BYTES = 64 << 20  # of tensors and sequences in one pass, as float32


def passes(encoded: Encoded, columns: Columns, most_rows: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the rows in order, one at least, as a trained model takes them.

    Args:
        encoded: the rows.
        columns: how they were encoded.
        most_rows: of a batch; fewer where tensors or the longest sequence are large.
    """
    rows = len(encoded.features)
    step = min(most_rows, max(1, PASS_BYTES // _row_bytes(encoded, columns)))
    for start in range(0, max(rows, 1), step):
        batch = _batch(encoded, columns, slice(start, min(start + step, rows)))
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def _row_bytes(encoded: Encoded, columns: Columns) -> int:
    found = 1
    for field in columns.tensors:
        counts = encoded.tensors[field.name].counts
        found += field.size * 4 * (1 if counts is None else int(counts.max(initial=1)))
    return found


def _batch(encoded: Encoded, columns: Columns, here: slice) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    if columns.has_features:
        found["features"] = encoded.features[here]
    if encoded.categories is not None:
        found["categories"] = encoded.categories[here]
    for field in columns.tensors:
        column = encoded.tensors[field.name]
        if column.counts is None:  # Arrow's memory may not be written to, and torch wants that
            found[field.name] = np.require(column.values[here], requirements=["C", "W"])
            continue
        counts = column.counts[here]
        found[field.name] = padded(column.values, column.starts[here], counts)
        found[field.name + LENGTH] = counts
    return found
