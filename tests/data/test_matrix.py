"""Columns two by two become the same rows as numpy's own transposition."""

import numpy as np
import pytest

from ddlflow.data.matrix import interleave


@pytest.mark.parametrize("num_columns", [0, 1, 2, 3, 28])
@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_interleave(num_columns: int, rows: int) -> None:
    columns = np.random.default_rng(0).standard_normal((num_columns, rows)).astype(np.float32)
    out = np.full((rows, num_columns), 7, dtype=np.float32)
    interleave(list(columns), out)
    assert np.array_equal(out, columns.T)
