"""Encoded rows on their way through a model, some at a time."""

from collections.abc import Iterator

import numpy as np
import torch

from ddlflow.data.columns import Columns, Encoded
from ddlflow.data.fields import LENGTH
from ddlflow.data.padding import padded

PASS_BYTES = 64 << 20  # of tensors and sequences in one pass, as float32
# The rows that are left over by fours take other kernels, in matrix products and in a sigmoid, and
# end in other last bits (measured with MKL, layers of 7 to 300). Of whole multiples of 64 rows a
# row's numbers are its own: they depend on neither the rows beside it nor the number of threads.
TOGETHER = 64


def passes(
    encoded: Encoded, columns: Columns, most_rows: int
) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Batches of the rows in order, one at least, as a trained model takes them.

    Args:
        encoded: the rows.
        columns: how they were encoded.
        most_rows: of a batch; fewer where tensors or the longest sequence are large.

    Yields:
        A batch, and how many of its rows count: the last one is repeated up to a multiple of
        `TOGETHER`, unless so many rows would be too large.
    """
    rows = len(encoded.features)
    step = min(most_rows, max(1, PASS_BYTES // _row_bytes(encoded, columns)))
    step -= step % TOGETHER if step > TOGETHER else 0
    for start in range(0, max(rows, 1), step):
        batch = _batch(encoded, columns, slice(start, min(start + step, rows)))
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        own = min(step, rows - start)
        extra = -own % TOGETHER if step >= TOGETHER and own else 0
        yield {name: _longer(one, extra) for name, one in tensors.items()}, own


def _longer(rows: torch.Tensor, extra: int) -> torch.Tensor:
    """The rows, with the last one so many times more."""
    return torch.cat([rows, rows[-1:].expand(extra, *rows.shape[1:])]) if extra else rows


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
