"""The rows of a stack: each (fold, seed) has its own order of its fold's rows.

A stream gives exactly the batches that a solo training of that fold and seed gets from
``ddlflow.data.shards.batches``. Many streams read one table of raw rows: held in memory once where
it is small, else mapped, and a chunk of some thousand rows at a time is gathered and standardised,
so that memory grows neither with the rows nor with the streams (an order is 4 MiB a stream).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddlflow.data.shards.batches import load
from ddlflow.data.shards.order import BatchOrder, Window
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.data.shards.sequence import Indices
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.sweep.member import FoldRows, Prepared
from ddlflow.train.validation import PIECE_ROWS

RESIDENT_BYTES = 512 << 20  # a table up to this size is held in memory, once a process
HELD_BYTES = 64 << 20  # and a fold's validation rows up to this one


class Table:
    """The raw rows of some shards, one after the other.

    Args:
        files: the shards, each once.
        device: where gathered rows are wanted.

    Attributes:
        starts: of each shard by its path, its first row.
        row_bytes: what a row takes in memory.
    """

    def __init__(self, files: ShardFiles, device: torch.device) -> None:
        self._device = device
        self._rows = rows = Rows(files, None)
        sizes = [shard.rows for shard in files.shards]
        self._edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        paths = (shard.path for shard in files.shards)
        self.starts = dict(zip(paths, self._edges.tolist(), strict=False))
        self.row_bytes = rows.row_bytes
        room = RESIDENT_BYTES
        if device.type == "cuda":
            room = torch.cuda.mem_get_info(device)[0] // 2
        is_small = rows.rows * self.row_bytes <= room
        self._held = load(rows, device) if is_small else {}

    def take(self, rows: Indices) -> dict[str, Tensor]:
        """The rows of these numbers, as they are in the shards, on the device."""
        if self._held:
            index = torch.from_numpy(rows).to(self._device)
            return {name: column.index_select(0, index) for name, column in self._held.items()}
        shard_of = np.searchsorted(self._edges, rows, side="right") - 1
        found = self._rows.empty(len(rows))
        for shard in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == shard)
            local = rows[places] - self._edges[shard]
            columns = self._rows.shard(shard)
            for name, array in found.items():
                array[places] = np.take(columns[name], local, axis=0)
        return {name: torch.from_numpy(array).to(self._device) for name, array in found.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a stream's epoch, standardised.

    Attributes:
        features: float32 [n, F] or, where the stack wants them, [n, F + 1] with a last column of
            ones: the bias of a first layer is then one more row of its weights.
        categories: [n, C] or None.
        label: [n]; of training rows as the net learns it, of validation rows as it is.
    """

    features: Tensor
    categories: Tensor | None
    label: Tensor


class Stream:
    """The rows of one fold in the order of one seed.

    Args:
        table: with the fold's shards among its own.
        fold: whose rows, and how they are standardised.
        label: how the nets learn the label.
        batch_rows: of a batch.
        seed: of the order.
        ones: whether features get a last column of ones.
        device: where the rows are wanted.
    """

    def __init__(
        self,
        table: Table,
        fold: FoldRows,
        label: LabelScale,
        batch_rows: int,
        seed: int,
        *,
        ones: bool,
        device: torch.device,
    ) -> None:
        self._table = table
        self._label = label
        self._ones = ones
        shards = fold.train.shards
        sizes = [shard.rows for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        # Added to a row's number in the fold, it gives its number in the table.
        starts = [table.starts[shard.path] for shard in shards]
        self._shift = np.array(starts, np.int64) - self._starts[:-1]
        self.rows = int(self._starts[-1])
        batch_rows = min(batch_rows, max(self.rows, 1))
        self._order = BatchOrder(self.rows, batch_rows, 1, seed, table.row_bytes)
        self._scaling = Scaling(fold, device)
        self._windows: Iterator[Window] = iter(())
        self._left: Indices = np.empty(0, np.int64)

    def begin(self, epoch: int) -> None:
        """Goes to the first row of an epoch (from 0)."""
        numbers = range(self._order.num_windows)
        self._windows = (self._order.window(epoch, 0, number) for number in numbers)
        self._left = np.empty(0, np.int64)

    def take(self, rows: int) -> Part:
        """The next rows of the epoch; there have to be so many."""
        while len(self._left) < rows:
            places = next(self._windows).indices()
            shard = np.searchsorted(self._starts, places, side="right") - 1
            self._left = np.concatenate([self._left, places + self._shift[shard]])
        taken, self._left = self._left[:rows], self._left[rows:]
        columns = self._table.take(taken)
        return Part(
            features=self._scaling(columns["features"], ones=self._ones),
            categories=columns.get("categories"),
            label=self._label.of_labels(columns["label"]),
        )


class Scaling:
    """A fold's standardisation, in the very operations that ``data.rows`` has."""

    def __init__(self, fold: FoldRows, device: torch.device) -> None:
        own = fold.standardisation
        self._mean = torch.from_numpy(own.mean).to(device)
        self._scale = torch.from_numpy(own.scale).to(device)
        self._has_missing = own.has_missing

    def __call__(self, raw: Tensor, *, ones: bool) -> Tensor:
        """Float32 [n, F] to [n, F], or [n, F + 1] with a column of ones."""
        rows, width = raw.shape
        out = raw.new_empty(rows, width + ones)
        scaled = out[:, :width]
        torch.sub(raw, self._mean, out=scaled)
        scaled.mul_(self._scale)
        if self._has_missing:
            scaled.masked_fill_(scaled.isnan(), 0.0)
        if ones:
            out[:, width] = 1.0
        return out


class Pool:
    """The rows of a sweep in one process: read once for all of its stacks.

    Args:
        prepared: the data set.
        folds: those whose members train here; None: all.
    """

    def __init__(self, prepared: Prepared, folds: Iterable[int | None] | None = None) -> None:
        self._folds = prepared.folds
        self._device = prepared.device
        chosen = self._folds if folds is None else set(folds)
        files = [self._folds[fold].train for fold in chosen]
        shards = tuple(dict.fromkeys(shard for one in files for shard in one.shards))
        self._table = Table(replace(files[0], shards=shards), self._device)
        self._held: dict[tuple[int | None, bool], list[Part]] = {}

    def stream(
        self,
        fold: int | None,
        seed: int,
        *,
        batch_rows: int,
        ones: bool,
        label: LabelScale = AS_IT_IS,
    ) -> Stream:
        """The training rows of a fold in the order of a seed."""
        rows, device = self._folds[fold], self._device
        return Stream(self._table, rows, label, batch_rows, seed, ones=ones, device=device)

    def validation(self, fold: int | None, *, ones: bool) -> Iterator[Part]:
        """The validation rows of a fold, in the pieces of ``ddlflow.train.validation``."""
        if (fold, ones) in self._held:
            yield from self._held[fold, ones]
            return
        own = self._folds[fold]
        rows = Rows(own.validation, own.standardisation)
        if rows.rows == 0:
            return
        held: list[Part] = []
        for start in range(0, rows.rows, PIECE_ROWS):
            arrays = rows.empty(min(PIECE_ROWS, rows.rows - start))
            rows.read(start, start + len(arrays["label"]), arrays, 0)
            columns = {name: torch.from_numpy(a).to(self._device) for name, a in arrays.items()}
            features = columns["features"]
            if ones:
                features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            part = Part(features, columns.get("categories"), columns["label"])
            yield part
            if rows.row_bytes * rows.rows <= HELD_BYTES:
                held.append(part)
        if held:
            self._held[fold, ones] = held
