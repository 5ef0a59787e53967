"""Runs of values -> a padded batch: [n, steps, ...], as long as its longest sequence."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


def in_runs(firsts: Int64, counts: Int64) -> Int64:
    """The numbers in the runs [first, first + count), one run after the other."""
    before = np.cumsum(counts) - counts  # in all runs before it
    found: Int64 = np.arange(int(counts.sum())) + np.repeat(firsts - before, counts)
    return found


def padded(values: Array, firsts: Int64, counts: Int64) -> Array:
    """The runs [first, first + count) of values [m, ...] side by side: [n, steps, ...].

    There is one step at least, so that a model need not be made for none; what is behind a
    sequence's end is 0.

    Args:
        values: the steps of many sequences.
        firsts: int64 [n].
        counts: int64 [n].
    """
    steps = max(int(counts.max(initial=0)), 1)
    out = np.zeros((len(counts), steps, *values.shape[1:]), values.dtype)
    out.reshape(-1, *values.shape[1:])[in_runs(np.arange(len(counts)) * steps, counts)] = values[
        in_runs(firsts, counts)
    ]
    return out
