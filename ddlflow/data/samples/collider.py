"""Made events with the columns of HIGGS, for demos and scale tests.

How they come about is told by ``ddlflow.data.samples.collision``;
``ddlflow.data.samples.generators`` writes the files.
"""

import pyarrow as pa

from ddlflow.data.samples.blocks import rows_of_blocks
from ddlflow.data.samples.collision import draw_block
from ddlflow.data.samples.masses import FEATURES, LABEL, high_level

__all__ = ["REPEATING", "SCHEMA", "VERSION", "events", "high_level"]

SCHEMA = pa.schema([pa.field(name, pa.float32()) for name in (LABEL, *FEATURES)])
REPEATING = [LABEL, *(name for name in FEATURES if name.endswith("b-tag"))]  # of few values
VERSION = 1  # raise it when the same (seed, row) gives another event


def events(rows: int, seed: int = 1, *, first: int = 0) -> pa.Table:
    """Events ``first`` to ``first + rows`` as a table of 29 float32 columns (``SCHEMA``).

    About 53 % are signal (label 1). Peak memory is that of the table and of one block.
    """
    return rows_of_blocks(_draw_block, rows, seed, first)


def _draw_block(seed: int, block: int) -> pa.Table:
    columns = draw_block(seed, block)
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)
