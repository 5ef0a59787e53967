"""The rows of a stack: each (fold, seed) has its own order of its fold's rows.

A stream gives exactly the batches that a solo training of that fold and seed gets from
``ddlflow.data.shards.batches``. Many streams read one table of raw rows: held in memory once where
it is small, else mapped, and a chunk of some thousand rows at a time is gathered and standardised,
so that memory grows neither with the rows nor with the streams (an order is 4 MiB a stream).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddlflow.data.shards import order
from ddlflow.data.shards.rows import COLUMNS, Arrays, Rows
from ddlflow.data.shards.shard import map_shard
from ddlflow.models.label_scale import AS_IT_IS, LabelScale
from ddlflow.sweep.member import FoldRows, Prepared
from ddlflow.train.validation import PIECE_ROWS

RESIDENT_BYTES = 512 << 20  # a table up to this size is held in memory, once a process
HELD_BYTES = 64 << 20  # and a fold's validation rows up to this one


class Table:
    """The raw rows of some shards, one after the other.

    Args:
        paths: the shards, each once.
        device: where gathered rows are wanted.

    Attributes:
        starts: int64 [shards + 1], the row that each shard begins at.
        columns: the names it has, of ``COLUMNS``.
    """

    def __init__(self, paths: Sequence[Path], device: torch.device) -> None:
        self.paths = list(paths)
        self._device = device
        self._shards = [map_shard(path) for path in self.paths]
        for shard in self._shards:
            shard.setdefault("features", np.empty((len(shard["label"]), 0), np.float32))
        sizes = [len(shard["label"]) for shard in self._shards]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.columns = [name for name in COLUMNS if name in self._shards[0]]
        a_row = sum(self._shards[0][name][:1].nbytes for name in self.columns)
        room = RESIDENT_BYTES
        if device.type == "cuda":
            room = torch.cuda.mem_get_info(device)[0] // 2
        self._held: dict[str, Tensor] = {}
        if int(self.starts[-1]) * a_row <= room:
            for name in self.columns:
                parts = [np.asarray(shard[name]) for shard in self._shards]
                self._held[name] = torch.from_numpy(np.concatenate(parts)).to(device)

    def take(self, rows: order.Indices) -> dict[str, Tensor]:
        """The rows of these numbers, as they are in the shards, on the device."""
        if self._held:
            index = torch.from_numpy(rows).to(self._device)
            return {name: column.index_select(0, index) for name, column in self._held.items()}
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        found: Arrays = {
            name: np.empty((len(rows), *self._shards[0][name].shape[1:]), self._dtype(name))
            for name in self.columns
        }
        for shard in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == shard)
            local = rows[places] - self.starts[shard]
            for name, array in found.items():
                array[places] = np.take(self._shards[shard][name], local, axis=0)
        return {name: torch.from_numpy(array).to(self._device) for name, array in found.items()}

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        return self._shards[0][name].dtype


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
        seed: of the order.
        ones: whether features get a last column of ones.
        device: where the rows are wanted.
    """

    def __init__(
        self,
        table: Table,
        fold: FoldRows,
        label: LabelScale,
        seed: int,
        *,
        ones: bool,
        device: torch.device,
    ) -> None:
        self._table = table
        self._label = label
        self._seed = seed
        self._ones = ones
        shards = [table.paths.index(path) for path in fold.train]
        sizes = [int(table.starts[s + 1] - table.starts[s]) for s in shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        # Added to a row's number in the fold, it gives its number in the table.
        self._shift = np.array([table.starts[s] for s in shards], np.int64) - self._starts[:-1]
        self.rows = int(self._starts[-1])
        self._scaling = Scaling(fold, device)
        self._windows: Iterator[order.Window] = iter(())
        self._left: order.Indices = np.empty(0, np.int64)

    def begin(self, epoch: int) -> None:
        """Goes to the first row of an epoch (from 0)."""
        self._windows = order.windows(self.rows, seed=self._seed, epoch=epoch)
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
        paths: dict[Path, None] = {}
        for fold in chosen:
            paths |= dict.fromkeys(self._folds[fold].train)
        self._table = Table(list(paths), self._device)
        self._held: dict[tuple[int | None, bool], list[Part]] = {}

    def stream(
        self, fold: int | None, seed: int, *, ones: bool, label: LabelScale = AS_IT_IS
    ) -> Stream:
        """The training rows of a fold in the order of a seed."""
        rows = self._folds[fold]
        return Stream(self._table, rows, label, seed, ones=ones, device=self._device)

    def validation(self, fold: int | None, *, ones: bool) -> Iterator[Part]:
        """The validation rows of a fold, in the pieces of ``ddlflow.train.validation``."""
        if (fold, ones) in self._held:
            yield from self._held[fold, ones]
            return
        own = self._folds[fold]
        rows = Rows(own.validation, own.standardisation)
        if rows.rows == 0:
            return
        a_row = sum(array.nbytes for array in rows.empty(1).values())
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
            if a_row * rows.rows <= HELD_BYTES:
                held.append(part)
        if held:
            self._held[fold, ones] = held
