"""Rows that are made in blocks, each from random numbers of its own: any worker draws any of them.

So row ``i`` is a function of (seed, i), whatever the number of rows and workers.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

BLOCK_ROWS = 25_000  # rows drawn from one stream of random numbers; changing it changes the rows


def stream(seed: int, block: int, kind: int = 0) -> np.random.Generator:
    """Random numbers of one block; the counter's last word keeps kinds of draws apart."""
    key = np.array([seed, block], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, kind]))


def rows_of_blocks(
    draw: Callable[[int, int], pa.Table], rows: int, seed: int, first: int
) -> pa.Table:
    """Rows ``first`` to ``first + rows``, put together from the blocks that hold them.

    Args:
        draw: (seed, block) -> the ``BLOCK_ROWS`` rows of that block.

    Peak memory is that of the rows and of one block.
    """
    tables = []
    for block in range(first // BLOCK_ROWS, -(-(first + rows) // BLOCK_ROWS)):
        start = block * BLOCK_ROWS
        begin = max(first - start, 0)
        tables.append(draw(seed, block).slice(begin, first + rows - start - begin))
    return pa.concat_tables(tables) if tables else draw(seed, 0).slice(0, 0)
