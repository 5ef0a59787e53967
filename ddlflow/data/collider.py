"""Made events with the columns of HIGGS, for demos and scale tests: any number, in parallel.

``plan`` names the files, ``write_part`` writes one of them on any worker. Event ``i`` is a function
of (seed, i): events are drawn in blocks (``ddlflow.data.collision``), each from random numbers of
its own, so neither the workers nor the number of rows change one on the same kind of processor.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ddlflow.data.collision import BLOCK_ROWS, draw_block
from ddlflow.data.masses import FEATURES, LABEL, high_level
from ddlflow.data.parts import ROW_GROUP_ROWS, refuse_strangers, stands, write_part_file
from ddlflow.errors import SpecError

__all__ = ["SCHEMA", "Part", "PartResult", "events", "high_level", "plan", "write_part"]

SCHEMA = pa.schema([pa.field(name, pa.float32()) for name in (LABEL, *FEATURES)])
PART_ROWS = 250_000  # ten blocks: about 28 MB
VERSION = 1  # raise it when the same (seed, row) gives another event


def events(rows: int, seed: int = 1, *, first: int = 0) -> pa.Table:
    """Events ``first`` to ``first + rows`` as a table of 29 float32 columns (``SCHEMA``).

    About 53 % are signal (label 1). Peak memory is that of the table and of one block.
    """
    blocks = range(first // BLOCK_ROWS, -(-(first + rows) // BLOCK_ROWS))
    tables = []
    for block in blocks:
        start = block * BLOCK_ROWS
        columns = draw_block(seed, block)[:, max(first - start, 0) : first + rows - start]
        tables.append(pa.Table.from_arrays([pa.array(c) for c in columns], schema=SCHEMA))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


@dataclass(frozen=True, slots=True)
class Part:
    """One file to be written: events ``first_row`` to ``first_row + rows`` of ``seed``."""

    path: str
    index: int
    first_row: int
    rows: int
    seed: int

    @property
    def identity(self) -> str:
        """What the file's bytes depend on; kept in the file, so that it can be known again."""
        made_by = {"collider": VERSION, "seed": self.seed}
        return json.dumps(made_by | {"first_row": self.first_row, "rows": self.rows})


@dataclass(frozen=True, slots=True)
class PartResult:
    """One file that stands."""

    path: str
    rows: int
    bytes: int
    cached: bool  # it stood already and was not written again


def plan(rows: int, out: str | Path, seed: int = 1) -> list[Part]:
    """The files that ``rows`` events make in folder ``out``. Writes nothing.

    Raises:
        SpecError: ``rows`` or ``seed`` cannot be.
        DataError: ``out`` is no folder, or holds Parquet files that are not of these events (they
            would be read along with them).
    """
    if rows < 1:
        raise SpecError(f"rows is {rows}; expected a whole number >= 1.")
    if not 0 <= seed < 2**64:
        raise SpecError(f"seed is {seed}; expected a whole number from 0 to 2^64 - 1.")
    folder = Path(out)
    parts = [
        Part(
            path=str(folder / f"part-{first // PART_ROWS:06d}.parquet"),
            index=first // PART_ROWS,
            first_row=first,
            rows=min(PART_ROWS, rows - first),
            seed=seed,
        )
        for first in range(0, rows, PART_ROWS)
    ]
    refuse_strangers(folder, {Path(part.path): part.identity for part in parts})
    return parts


def write_part(part: Part) -> PartResult:
    """Writes one part, whole or not at all; does nothing where it stands.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    path = Path(part.path)
    cached = stands(path, part.identity)
    if not cached:
        end = part.first_row + part.rows
        groups = (
            events(min(ROW_GROUP_ROWS, end - first), part.seed, first=first)
            for first in range(part.first_row, end, ROW_GROUP_ROWS)
        )
        few_values = [LABEL, *(name for name in FEATURES if name.endswith("b-tag"))]
        write_part_file(path, groups, SCHEMA, part.identity, few_values=few_values)
    return PartResult(part.path, part.rows, path.stat().st_size, cached)
