"""Made sources as Parquet files: any number of rows, in parallel, the same bytes on any workers.

``plan`` names the files, ``write_part`` writes one of them on any worker. What the rows are is told
by a module for each source.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from ddlflow.data.samples import collider, particles
from ddlflow.data.samples.parts import ROW_GROUP_ROWS, refuse_strangers, stands, write_part_file
from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import MadeName
from ddlflow.store.store import is_url, open_store


class SampleModule(Protocol):
    """What a module tells of the rows that it makes."""

    SCHEMA: pa.Schema
    REPEATING: list[str]  # columns of few values: these become dictionaries in a file
    VERSION: int  # another number where the same seed gives other rows

    def events(self, rows: int, seed: int = 1, *, first: int = 0) -> pa.Table:
        """Rows ``first`` to ``first + rows``."""


GENERATORS: dict[MadeName, SampleModule] = {"collider": collider, "particles": particles}
PART_ROWS = 250_000  # ten blocks: 10 to 30 MB


@dataclass(frozen=True, slots=True)
class SamplePart:
    """One file to be written: rows ``first_row`` to ``first_row + rows`` of ``seed``."""

    use: MadeName
    path: str
    index: int
    first_row: int
    rows: int
    seed: int

    @property
    def identity(self) -> str:
        """What the file's bytes depend on; kept in the file, so that it can be known again."""
        made_by = {self.use: GENERATORS[self.use].VERSION, "seed": self.seed}
        return json.dumps(made_by | {"first_row": self.first_row, "rows": self.rows})


@dataclass(frozen=True, slots=True)
class PartResult:
    """One file that stands."""

    path: str
    rows: int
    bytes: int
    cached: bool  # it stood already and was not written again


def plan(use: MadeName, rows: int, out: str | Path, seed: int = 1) -> list[SamplePart]:
    """The files that ``rows`` rows of a source make in folder ``out``. Writes nothing.

    Raises:
        SpecError: ``rows`` or ``seed`` cannot be.
        DataError: ``out`` is no folder, or holds Parquet files that are not of these rows (they
            would be read along with them).
    """
    if rows < 1:
        raise SpecError(f"rows is {rows}; expected a whole number >= 1.")
    if not 0 <= seed < 2**64:
        raise SpecError(f"seed is {seed}; expected a whole number from 0 to 2^64 - 1.")
    parts = [
        SamplePart(
            use=use,
            path=f"{out}/part-{first // PART_ROWS:06d}.parquet",
            index=first // PART_ROWS,
            first_row=first,
            rows=min(PART_ROWS, rows - first),
            seed=seed,
        )
        for first in range(0, rows, PART_ROWS)
    ]
    if not is_url(str(out)):  # there a folder is of these rows alone
        refuse_strangers(Path(out), {Path(part.path): part.identity for part in parts})
    return parts


def write_part(part: SamplePart) -> PartResult:
    """Writes one part, whole or not at all; does nothing where it stands.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
        OSError: the object store does not answer.
    """
    if is_url(part.path):
        folder, _, name = part.path.rpartition("/")
        store = open_store(folder)
        if cached := store.exists(name):
            return PartResult(part.path, part.rows, store.size(name), cached)
        with store.writing(name) as path:
            written = write_part(replace(part, path=str(path)))
        return replace(written, path=part.path)
    path, source = Path(part.path), GENERATORS[part.use]
    cached = stands(path, part.identity)
    if not cached:
        end = part.first_row + part.rows
        groups = (
            source.events(min(ROW_GROUP_ROWS, end - first), part.seed, first=first)
            for first in range(part.first_row, end, ROW_GROUP_ROWS)
        )
        write_part_file(path, groups, source.SCHEMA, part.identity, few_values=source.REPEATING)
    return PartResult(part.path, part.rows, path.stat().st_size, cached)
