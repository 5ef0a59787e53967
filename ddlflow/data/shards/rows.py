"""The rows of some shards, one after the other: mapped, standardised as they are copied.

Tensors stay in their own dtype until a batch is made of them (``ready``), and of sequences a row
has a run into the mapped values until then: what is copied about is small.

No file is looked at before a row of it is wanted, and of many shards only some are mapped at a
time, so there may be a hundred thousand of them.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddlflow.data.fields import LENGTH, TABLE_FIELDS
from ddlflow.data.padding import in_runs, padded
from ddlflow.data.shards import order
from ddlflow.data.shards.manifest_parts import Shard, ShardFile
from ddlflow.data.shards.sequence import Indices
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.store.store import Place

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
NO_INPUTS = ("weight", "label")
COLUMNS = ("features", "categories", *NO_INPUTS)  # what training reads of a table's shard
VALUES = "/values"  # behind the name of a sequence: its steps
PIECE_BYTES = 64 << 20  # of the rows that are read at once, where tensors make them large
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
        tensors: that of each tensor and sequence by name: of its last axis, or of all as one [1].
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    has_missing: bool
    tensors: Mapping[str, "Standardisation"] = field(default_factory=dict)

    def applied(self, raw: Array, out: Array | None = None) -> Array:
        """Numbers [..., F] of any dtype as float32 of the same shape, standardised."""
        if out is None:
            out = np.empty(raw.shape, np.float32)
        np.copyto(out, raw, casting="unsafe")  # apart: 6 times as fast as a subtraction that casts
        np.subtract(out, self.mean, out=out)
        np.multiply(out, self.scale, out=out)
        if self.has_missing:
            np.copyto(out, 0, where=np.isnan(out))
        return out


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Some shards, and how to get at their files.

    Attributes:
        shards: in the order of their rows.
        locate: the files of some of these, whole and on this host, in the same order. It may take
            its time: it is asked ahead.
    """

    shards: tuple[Shard, ...]
    locate: Callable[[Sequence[ShardFile]], Sequence[Path]]

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
        self._first_values = _first_values(files.shards)
        self._standardisation = standardisation
        self._label = label
        if standardisation is not None:
            # Tiled to a block's length: an operation on flat arrays of one length runs at memory
            # speed, one that broadcasts 28 columns runs at half of it (measured).
            self._mean = np.tile(standardisation.mean, order.BLOCK_ROWS)
            self._scale = np.tile(standardisation.scale, order.BLOCK_ROWS)

    @cached_property
    def columns(self) -> list[str]:
        """What the shards have of `COLUMNS`, and their tensors and sequences before the label."""
        there = self.shard(0) if self._files.shards else {}
        table = [name for name in COLUMNS if name in there]
        at = sum(name not in NO_INPUTS for name in table)
        return [*table[:at], *self.tensors, *table[at:]]

    @cached_property
    def tensors(self) -> list[str]:
        """The names of the tensors and sequences."""
        there = self.shard(0) if self._files.shards else {}
        return [name for name in there if name not in TABLE_FIELDS and not name.endswith(VALUES)]

    @cached_property
    def sequences(self) -> list[str]:
        """The names of the sequences."""
        return [name for name in self.tensors if name in self._first_values]

    @property
    def inputs(self) -> list[str]:
        """The fields that a model may ask for."""
        found: list[str] = []
        for name in self.columns:
            if name not in NO_INPUTS:
                found += [name, name + LENGTH] if name in self.sequences else [name]
        return found

    @cached_property
    def row_bytes(self) -> int:
        """What a row of these columns takes in memory; with sequences, at most."""
        found = 0
        for name, array in self.empty(1).items():
            found += array.nbytes
            if name in self.sequences:
                step = self.shard(0)[name + VALUES]
                steps = max(self._longest(name), 1)
                found += steps * int(np.prod(step.shape[1:])) * 4
            elif name in self.tensors:
                found += array.size * 4
        return found

    def piece_rows(self, most: int) -> int:
        """How many rows are read at once: fewer than ``most`` where tensors make them large."""
        if not self.tensors:
            return most
        return max(1, min(most, PIECE_BYTES // self.row_bytes))

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
        path, *of_values = self._files.locate(shard.files)
        found = map_shard(path)
        for one, values in zip(shard.values, of_values, strict=True):
            found[one.field + VALUES] = map_shard(values)["values"]
        if {*found} <= {*TABLE_FIELDS}:
            # Models of tables are called with features first, even with none of them.
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
            shards = [self._files.shards[number] for number in fresh]
            self._files.locate([file for shard in shards for file in shard.files])
            self._fetched.update(fresh)

    def read(self, start: int, stop: int, out: Arrays, at: int) -> None:
        """Copies rows [start, stop) to ``out[column][at:]``, for each column that ``out`` has.

        Features and labels are standardised; tensors are as they are, and of sequences there is
        a run, both of which ``ready`` takes. ``row``, the rows' numbers in the source, is no
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
                    if name in self._first_values:  # a run, of the values of all shards now
                        np.add(target[:, 0], self._first_values[name][shard], out=target[:, 0])
            at += end - start
            start = end
            if start == self._starts[shard + 1]:
                shard += 1

    def batch(self, start: int, stop: int, buffer: Arrays) -> Arrays:
        """Rows [start, stop) as a model gets them: all columns of a buffer, of ``empty``."""
        self.read(start, stop, buffer, 0)
        return self.ready({name: array[: stop - start] for name, array in buffer.items()})

    def ready(self, raw: Arrays, *, out: Arrays | None = None) -> Arrays:
        """What was read, with tensors standardised and sequences padded, as a model gets them.

        Args:
            raw: columns that were read; those of a table stay the same arrays.
            out: float32 memory for some tensors, of the same rows.
        """
        found: Arrays = {}
        for name, array in raw.items():
            if name in self.sequences:
                found[name], found[name + LENGTH] = self._padded(name, array), array[:, 1]
            elif name in self.tensors and self._standardisation is not None:
                own = self._standardisation.tensors[name]
                found[name] = own.applied(array, None if out is None else out.get(name))
            else:
                found[name] = array
        return found

    def _padded(self, name: str, runs: Array) -> Array:
        """The sequences [n, steps, ...] of runs [n, 2], padded after they are standardised."""
        firsts, counts = runs[:, 0].astype(np.int64), runs[:, 1].astype(np.int64)
        starts = self._first_values[name]
        shard_of = np.searchsorted(starts, firsts, side="right") - 1
        shard_of = np.minimum(shard_of, len(starts) - 2)
        before = np.cumsum(counts) - counts
        like = self.shard(0)[name + VALUES]
        values = np.empty((int(counts.sum()), *like.shape[1:]), like.dtype)
        for shard in np.unique(shard_of[counts > 0]).tolist():
            rows = np.flatnonzero((shard_of == shard) & (counts > 0))
            steps = in_runs(firsts[rows] - starts[shard], counts[rows])
            values[in_runs(before[rows], counts[rows])] = self.shard(shard)[name + VALUES][steps]
        if self._standardisation is not None:
            values = self._standardisation.tensors[name].applied(values)
        return padded(values, before, counts)

    def _longest(self, name: str) -> int:
        every = (one for shard in self._files.shards for one in shard.values)
        return max(one.longest for one in every if one.field == name)

    def _standardise(self, source: Array, target: Array) -> None:
        assert self._standardisation is not None
        flat = target.reshape(-1)
        np.subtract(source.reshape(-1), self._mean[: flat.size], out=flat)
        np.multiply(flat, self._scale[: flat.size], out=flat)
        if self._standardisation.has_missing:
            np.copyto(flat, 0, where=np.isnan(flat))


def _first_values(shards: Sequence[Shard]) -> dict[str, npt.NDArray[np.int64]]:
    """By sequence, the first of each shard's values among those of all shards, and their end."""
    counts: dict[str, list[int]] = {}
    for shard in shards:
        for one in shard.values:
            counts.setdefault(one.field, []).append(one.rows)
    return {name: np.cumsum([0, *rows], dtype=np.int64) for name, rows in counts.items()}
