"""Shards -> the slices of each global batch that one rank computes.

Rows stay in the page cache: a window of blocks is copied from the mapped shards, standardised on
the way, and its rows are gathered in the epoch's order, all in a thread of its own while the window
before is trained on. What the training loop gets is lists of ready views, so it neither indexes nor
copies. Memory is that of four windows, however many rows there are. Where the rows fit in half of
a GPU's free memory they are kept there and gathered there.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ddlflow.data import order
from ddlflow.data.shard import map_shard

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
Tensors = dict[str, torch.Tensor]
COLUMNS = ("features", "categories", "label")  # what training reads of a shard


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


class Rows:
    """The rows of some shards, one after the other, mapped and never read as a whole.

    Args:
        paths: the shards' files.
        standardisation: put on features as they are copied; none: they stay as they are.

    Attributes:
        rows: how many there are.
        columns: the names that the shards have, of `COLUMNS`.
    """

    def __init__(self, paths: Sequence[Path], standardisation: Standardisation | None) -> None:
        self._shards = [map_shard(path) for path in paths]
        for shard in self._shards:  # models are called with features first, even with none of them
            shard.setdefault("features", np.empty((len(shard["label"]), 0), np.float32))
        sizes = [len(shard["label"]) for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.rows = int(self._starts[-1])
        self.columns = [name for name in COLUMNS if self._shards and name in self._shards[0]]
        self._standardisation = standardisation
        if standardisation is not None:
            # Tiled to a block's length: an operation on flat arrays of one length runs at memory
            # speed, one that broadcasts 28 columns runs at a third of it (measured).
            self._mean = np.tile(standardisation.mean, order.BLOCK_ROWS)
            self._scale = np.tile(standardisation.scale, order.BLOCK_ROWS)

    def empty(self, rows: int) -> Arrays:
        """Uninitialised arrays for so many rows, one a column."""
        shapes = {name: self._shards[0][name] for name in self.columns}
        return {name: np.empty((rows, *a.shape[1:]), a.dtype) for name, a in shapes.items()}

    def read(self, start: int, stop: int, out: Arrays, at: int) -> None:
        """Copies rows [start, stop) to ``out[column][at:]``, features standardised."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[shard + 1]), start + order.BLOCK_ROWS)
            low, high = start - self._starts[shard], end - self._starts[shard]
            for name in self.columns:
                source, target = (
                    self._shards[shard][name][low:high],
                    out[name][at : at + end - start],
                )
                if name == "features" and self._standardisation is not None:
                    self._standardise(source, target)
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive steps of one rank, as views in the order of their use.

    Attributes:
        epoch: from 0.
        step: the epoch's step of the first global batch here, from 0.
        batch_rows: rows of each of these global batches, over all ranks.
        slices: for each step, for each virtual rank of this rank: (features, label), with
            categories between them where the data has them. A slice may be empty.
        ends_epoch: whether the epoch's last step is here.
    """

    epoch: int
    step: int
    batch_rows: int
    slices: list[tuple[torch.Tensor, ...]]
    ends_epoch: bool


class Batches:
    """One rank's slices of every global batch of every epoch.

    Args:
        rows: the training rows; at least one.
        batch_rows: rows of a global batch, at least ``virtual_ranks``.
        virtual_ranks: how many slices a global batch has.
        mine: the virtual ranks that this rank computes.
        seed: of the order.
        device: where the slices are wanted.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_rows: int,
        virtual_ranks: int,
        mine: range,
        seed: int,
        device: torch.device,
    ) -> None:
        self._rows = rows.rows
        self._batch_rows = min(batch_rows, max(rows.rows, 1))
        self._virtual_ranks = virtual_ranks
        self._mine = mine
        self._seed = seed
        self._gather = Resident(rows, device) if fits_on(device, rows) else Mapped(rows, device)

    def stream(self, *, epoch: int, step: int, epochs: int) -> Iterator[Chunk]:
        """All chunks from (epoch, step) on; each is valid until the next is asked for."""
        chunks = (
            chunk
            for e in range(epoch, epochs)
            for chunk in self._epoch(e, step if e == epoch else 0)
        )
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            ahead = pool.submit(next, chunks, None)
            while (chunk := ahead.result()) is not None:
                ahead = pool.submit(next, chunks, None)
                yield chunk

    def _epoch(self, epoch: int, step: int) -> Iterator[Chunk]:
        """This rank's stream of rows, cut into steps; a window's rest goes with the next."""
        rows, size = self._rows, self._batch_rows
        sizes, rest = self._sizes(size), rows % size
        position, over = min(step * size, rows), 0
        if position == rows:  # stopped after the epoch's last step, before its end was dealt with
            yield Chunk(epoch, step, size, [], True)
        for window in order.windows(rows, seed=self._seed, epoch=epoch, position=position):
            stop = window.start + window.rows
            at = self._mine_between(max(position, window.start), stop) - window.start
            columns = self._gather(window, at, over)
            steps = min((over + len(at)) // sum(sizes), rows // size - step)
            used = steps * sum(sizes)
            ends = stop == rows and not rest
            if steps or ends:  # the last window may hold rows of other ranks alone
                self._gather.lend()
                yield Chunk(epoch, step, size, _cut(columns, 0, sizes * steps), ends)
            step += steps
            if stop == rows and rest:
                self._gather.lend()
                yield Chunk(epoch, step, rest, _cut(columns, used, self._sizes(rest)), True)
            position, over = stop, over + len(at) - used

    def _sizes(self, batch_rows: int) -> list[int]:
        """Rows of each of this rank's slices of a global batch."""
        edges = order.slice_edges(batch_rows, self._virtual_ranks)
        return [edges[v + 1] - edges[v] for v in self._mine]

    def _mine_between(self, start: int, stop: int) -> order.Indices:
        """The epoch's positions in [start, stop) whose rows this rank computes."""
        positions = np.arange(start, stop)
        if len(self._mine) == self._virtual_ranks:
            return positions
        whole = self._rows // self._batch_rows * self._batch_rows
        mine = self._inside(positions % self._batch_rows, self._batch_rows)
        if stop > whole:
            last = self._inside(positions - whole, self._rows - whole)
            mine = np.where(positions < whole, mine, last)
        return positions[mine]

    def _inside(self, slots: order.Indices, batch_rows: int) -> npt.NDArray[np.bool_]:
        edges = order.slice_edges(batch_rows, self._virtual_ranks)
        return (slots >= edges[self._mine.start]) & (slots < edges[self._mine.stop])


class Mapped:
    """Gathers from mapped shards, window by window."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._window = rows.empty(min(rows.rows, order.WINDOW_ROWS))
        # In use, waiting, and being filled: kept, as fresh memory costs a page fault each 4 KiB.
        self._buffers: list[Arrays] = [{}, {}, {}]
        self._last = self._lent = self._buffers[0]
        self._filled = 0

    def __call__(self, window: order.Window, at: order.Indices, over: int) -> Tensors:
        """The last ``over`` rows of the call before, then the rows ``at`` places of ``window``."""
        at_row = 0
        for start, stop in window.blocks.tolist():
            self._rows.read(start, stop, self._window, at_row)
            at_row += stop - start
        before = self._last
        target = next(b for b in self._buffers if b is not before and b is not self._lent)
        total, pick = over + len(at), window.order[at]
        for name, source in self._window.items():
            if name not in target or len(target[name]) < total:
                target[name] = self._allocate(source, total)
            if over:
                target[name][:over] = before[name][self._filled - over : self._filled]
            np.take(source, pick, axis=0, out=target[name][over:total], mode="clip")
        self._last = target
        self._filled = total
        return {name: self._to_device(array[:total]) for name, array in target.items()}

    def lend(self) -> None:
        """What was gathered last is in use from now on, until this is called again."""
        self._lent = self._last

    def _allocate(self, like: Array, rows: int) -> Array:
        pinned = self._device.type == "cuda"
        dtype = torch.from_numpy(like[:0]).dtype
        return torch.empty((rows, *like.shape[1:]), dtype=dtype, pin_memory=pinned).numpy()

    def _to_device(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class Resident:
    """Gathers on the device, where all rows stay."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._device = device
        self._columns = load(rows, device)
        self._before: Tensors = {}

    def __call__(self, window: order.Window, at: order.Indices, over: int) -> Tensors:
        """As `Mapped`."""
        index = torch.from_numpy(window.indices()[at]).to(self._device)
        fresh = {name: column.index_select(0, index) for name, column in self._columns.items()}
        if over:
            fresh = {n: torch.cat([self._before[n][-over:], new]) for n, new in fresh.items()}
        self._before = fresh
        return fresh

    def lend(self) -> None:
        """Fresh tensors are nobody else's."""


def load(rows: Rows, device: torch.device) -> Tensors:
    """All rows on a device, standardised, by way of one window's memory."""
    columns: Tensors = {}
    for start in range(0, rows.rows, order.WINDOW_ROWS):
        stop = min(rows.rows, start + order.WINDOW_ROWS)
        part = rows.empty(stop - start)
        rows.read(start, stop, part, 0)
        for name, array in part.items():
            if name not in columns:
                dtype = torch.from_numpy(array[:0]).dtype
                shape = (rows.rows, *array.shape[1:])
                columns[name] = torch.empty(shape, dtype=dtype, device=device)
            columns[name][start:stop] = torch.from_numpy(array)
    return columns


def fits_on(device: torch.device, rows: Rows) -> bool:
    """Whether all rows fit in half of a GPU's free memory. (A CPU reads the page cache.)"""
    if device.type != "cuda":
        return False
    a_row = sum(array.nbytes for array in rows.empty(1).values())
    return rows.rows * a_row <= torch.cuda.mem_get_info(device)[0] // 2


def _cut(columns: Tensors, start: int, sizes: list[int]) -> list[tuple[torch.Tensor, ...]]:
    """Views of the rows from ``start`` on, of the given sizes."""
    stop = start + sum(sizes)
    cuts = [
        torch.split(column[start:stop], sizes)
        for name in COLUMNS
        if (column := columns.get(name)) is not None
    ]
    return list(zip(*cuts, strict=True)) if sizes else []
