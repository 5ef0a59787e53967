"""Which split each row of a source went to, as the prepared data set has it.

A shard keeps the numbers of its rows in the source, and its name says of which range and piece they
are. So a piece that is read again finds its rows' splits in a few small files, whatever the size
of the source.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from ddlflow.data.prepare.split import SPLITS
from ddlflow.data.shards.manifest import Manifest, Shard
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.errors import DataError

_SHARD = re.compile(r"(\d+)-(\d+)(-\d+)?\.arrow")


@dataclass(frozen=True, slots=True)
class RowSplits:
    """A range's rows in a data set. Small: it travels to a worker.

    Attributes:
        dataset: the data set's folder.
        digest: of its manifest.
        number: the range's, over all sources of the data set.
        first_row: the number of its first row.
        rows: how many rows it has.
    """

    dataset: str
    digest: str
    number: int
    first_row: int
    rows: int

    def of_piece(self, piece: int, start: int, rows: int) -> pa.Array:
        """The split of each row of a piece; null where the row was left out.

        Args:
            piece: its number in the range.
            start: rows of the range before it.
            rows: of the piece.

        Raises:
            DataError: these are not the rows that were prepared.
        """
        codes = np.full(rows, -1, np.int8)
        shards = _shards(self.dataset, self.digest)[self.number, piece]
        for shard, path in zip(shards, verified(self.dataset, shards), strict=True):
            at = map_shard(path)["row"] - (self.first_row + start)
            if len(at) and not (at.min() >= 0 and at.max() < rows):
                raise DataError(_CHANGED)
            codes[at] = SPLITS.index(shard.split)
        return pa.array(SPLITS).take(pa.array(codes, mask=codes < 0))

    def check(self, rows: int) -> None:
        """Whether the range had as many rows as when it was prepared.

        Raises:
            DataError: it had not.
        """
        if rows != self.rows:
            raise DataError(_CHANGED)


_CHANGED = (
    "The source changed while the run was under way: it has other rows than those prepared. "
    "Run the same command again."
)


def row_splits(dataset: str | Path, num_ranges: int, *, is_test: bool) -> list[RowSplits]:
    """The splits of a source's rows, range by range.

    Args:
        dataset: the folder of the data set that was made from the source.
        num_ranges: of the source.
        is_test: the source is ``data.test_source``, whose ranges come after those of the source.

    Raises:
        DataError: the data set was made from a source of other ranges.
    """
    manifest = Manifest.load(dataset)
    sizes = manifest.range_rows
    if num_ranges > len(sizes):
        raise DataError(_CHANGED)
    first = len(sizes) - num_ranges if is_test else 0
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        RowSplits(str(dataset), manifest.digest, number, starts[number], sizes[number])
        for number in range(first, first + num_ranges)
    ]


@lru_cache(maxsize=2)
def _shards(dataset: str, digest: str) -> dict[tuple[int, int], list[Shard]]:
    """The shards of each (range, piece)."""
    found: dict[tuple[int, int], list[Shard]] = defaultdict(list)
    for shard in Manifest.load(dataset).shards:
        name = _SHARD.fullmatch(Path(shard.path).name)
        assert name is not None
        found[int(name[1]), int(name[2])].append(shard)
    return found
