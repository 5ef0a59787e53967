"""Which split each row of a source went to, as the prepared data set has it.

A shard keeps the numbers of its rows in the source, and the manifest says where each shard begins
there. So a piece that is read again finds its rows' splits in a few small files, whatever the size
of the source.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.prepare.split import SPLITS
from ddlflow.data.shards.manifest import Manifest, Shard
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.errors import DataError

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class RowSplits:
    """A range's rows in a data set. Small: it travels to a worker.

    Attributes:
        dataset: the data set's folder.
        digest: of its manifest.
        first_row: the number of the range's first row.
        rows: how many rows it has.
    """

    dataset: str
    digest: str
    first_row: int
    rows: int

    def of_piece(self, start: int, rows: int) -> pa.Array:
        """The split of each row of a piece; null where the row was left out.

        Args:
            start: rows of the range before it.
            rows: of the piece.

        Raises:
            DataError: a shard is missing or damaged.
        """
        codes = np.full(rows, -1, np.int8)
        begin = self.first_row + start
        starts = _listed(self.dataset, self.digest)[0]
        at = max(int(np.searchsorted(starts, begin, side="right")) - 1, 0)
        while at < len(starts) and (first := int(starts[at])) < begin + rows:
            known = _codes_from(self.dataset, self.digest, at)
            low, high = max(first, begin), min(first + len(known), begin + rows)
            if low < high:
                codes[low - begin : high - begin] = known[low - first : high - first]
            at += 1
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
    digest = manifest.digest
    return [
        RowSplits(str(dataset), digest, starts[number], sizes[number])
        for number in range(first, first + num_ranges)
    ]


@lru_cache(maxsize=2)
def _listed(dataset: str, digest: str) -> tuple[npt.NDArray[np.int64], list[list[Shard]]]:
    """The first rows of all prepared pieces, rising, and the shards of each."""
    found: dict[int, list[Shard]] = {}
    for shard in Manifest.load(dataset).shards:
        found.setdefault(shard.first_row, []).append(shard)
    starts = sorted(found)
    return np.array(starts, dtype=np.int64), [found[start] for start in starts]


@lru_cache(maxsize=2)
def _codes_from(dataset: str, digest: str, at: int) -> Codes:
    """The splits of a prepared piece's rows, by the places in `SPLITS`; -1: left out.

    Small ranges share a piece, and ask for it one after the other.
    """
    starts, shards = _listed(dataset, digest)
    own = shards[at]
    rows = [map_shard(path)["row"] for path in verified(dataset, own)]
    codes = np.full(max(int(row.max()) for row in rows) + 1 - int(starts[at]), -1, np.int8)
    for shard, row in zip(own, rows, strict=True):
        codes[row - starts[at]] = SPLITS.index(shard.split)
    return codes
