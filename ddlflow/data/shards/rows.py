"""The rows of some shards, one after the other: mapped, standardised as they are copied.

No file is looked at before a row of it is wanted, and of many shards only some are mapped at a
time, so there may be a hundred thousand of them.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddlflow.data.shards import order
from ddlflow.data.shards.manifest import Shard
from ddlflow.data.shards.sequence import Indices
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.store.store import Place

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
COLUMNS = ("features", "categories", "weight", "label")  # what training reads of a shard
# Each map keeps a descriptor, and a process may have 1,024 of them where nobody raised that; a
# training has the rows of two splits.
MAPS = 128


@dataclass(frozen=True, slots=True)
class Standardisation:
    """(x - mean) * scale and NaN -> 0, as the model's own buffers have it.

    Attributes:
        mean: float32 [F].
        scale: float32 [F].
        has_missing: whether any row holds a NaN; where none does, nothing looks for one.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    has_missing: bool


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Some shards, and how to get at their files.

    Attributes:
        shards: in the order of their rows.
        locate: the files of some of these, whole and on this host, in the same order. It may take
            its time: it is asked ahead.
    """

    shards: tuple[Shard, ...]
    locate: Callable[[Sequence[Shard]], Sequence[Path]]

    @classmethod
    def in_folder(cls, folder: Place, shards: Sequence[Shard]) -> "ShardFiles":
        """Those of a data set, each of which is read once to see that it is whole."""
        return cls(tuple(shards), partial(verified, folder))


class Rows:
    """The rows of some shards, one after the other, mapped and never read as a whole.

    Args:
        files: the shards.
        standardisation: put on features as they are copied; none: they stay as they are.
        label: what labels become as they are copied; none: they stay as they are.

    Attributes:
        rows: how many there are.
    """

    def __init__(
        self,
        files: ShardFiles,
        standardisation: Standardisation | None,
        label: Callable[[Array], Array] | None = None,
    ) -> None:
        self._files = files
        sizes = [shard.rows for shard in files.shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.rows = int(self._starts[-1])
        self._maps: OrderedDict[int, Arrays] = OrderedDict()  # those used last are the last
        self._lock = threading.Lock()  # of the maps: rows are read ahead in another thread
        self._fetched: set[int] = set()
        self._standardisation = standardisation
        self._label = label
        if standardisation is not None:
            # Tiled to a block's length: an operation on flat arrays of one length runs at memory
            # speed, one that broadcasts 28 columns runs at half of it (measured).
            self._mean = np.tile(standardisation.mean, order.BLOCK_ROWS)
            self._scale = np.tile(standardisation.scale, order.BLOCK_ROWS)

    @cached_property
    def columns(self) -> list[str]:
        """The names that the shards have, of `COLUMNS`."""
        return [name for name in COLUMNS if self._files.shards and name in self.shard(0)]

    @property
    def inputs(self) -> list[str]:
        """Those of the columns that a model may ask for."""
        return [name for name in self.columns if name not in ("weight", "label")]

    @cached_property
    def row_bytes(self) -> int:
        """What a row of these columns takes in memory."""
        return sum(array.nbytes for array in self.empty(1).values())

    def empty(self, rows: int) -> Arrays:
        """Uninitialised arrays for so many rows, one a column."""
        shapes = {name: self.shard(0)[name] for name in self.columns}
        return {name: np.empty((rows, *a.shape[1:]), a.dtype) for name, a in shapes.items()}

    def shard(self, number: int) -> Arrays:
        """The mapped columns of a shard, as they are in its file."""
        with self._lock:
            found = self._maps.get(number)
            if found is not None:
                self._maps.move_to_end(number)
                return found
        shard = self._files.shards[number]
        (path,) = self._files.locate([shard])
        found = map_shard(path)
        # Models are called with features first, even with none of them.
        found.setdefault("features", np.empty((shard.rows, 0), np.float32))
        with self._lock:
            self._maps[number] = found
            while len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        return found

    def fetch(self, blocks: Indices) -> None:
        """Gets the shards that hold rows [begin, end) of some blocks, all at once, if need be.

        Args:
            blocks: [b, 2].

        Raises:
            DataError: one is missing or damaged.
        """
        first = np.searchsorted(self._starts, blocks[:, 0], side="right") - 1
        last = np.searchsorted(self._starts, blocks[:, 1], side="left")
        ranges = set(zip(first.tolist(), last.tolist(), strict=True))
        fresh = sorted({n for a, b in ranges for n in range(a, b)} - self._fetched)
        if fresh:
            self._files.locate([self._files.shards[number] for number in fresh])
            self._fetched.update(fresh)

    def read(self, start: int, stop: int, out: Arrays, at: int) -> None:
        """Copies rows [start, stop) to ``out[column][at:]``, for each column that ``out`` has.

        Features and labels are standardised. ``row``, the rows' numbers in the source, is no
        training column, but can be read alone.
        """
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[shard + 1]), start + order.BLOCK_ROWS)
            low, high = start - self._starts[shard], end - self._starts[shard]
            columns = self.shard(shard)
            for name, column in out.items():
                source = columns[name][low:high]
                target = column[at : at + end - start]
                if name == "features" and self._standardisation is not None:
                    self._standardise(source, target)
                elif name == "label" and self._label is not None:
                    np.copyto(target, self._label(source))
                else:
                    np.copyto(target, source)
            at += end - start
            start = end
            if start == self._starts[shard + 1]:
                shard += 1

    def _standardise(self, source: Array, target: Array) -> None:
        assert self._standardisation is not None
        flat = target.reshape(-1)
        np.subtract(source.reshape(-1), self._mean[: flat.size], out=flat)
        np.multiply(flat, self._scale[: flat.size], out=flat)
        if self._standardisation.has_missing:
            np.copyto(flat, 0, where=np.isnan(flat))
