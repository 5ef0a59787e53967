"""Shards -> the slices of each global batch that one rank computes.

Rows stay in the page cache: a window of blocks is copied from the mapped shards, standardised on
the way, and its rows are gathered in the epoch's order, all in a thread of its own while the window
before is trained on. What the training loop gets is lists of ready views, so it neither indexes nor
copies. Memory is that of four windows, however many rows there are. Where the rows fit in half of
a GPU's free memory they are kept there and gathered there.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ddlflow.data.shards import order
from ddlflow.data.shards.rows import Array, Arrays, Rows

Tensors = dict[str, torch.Tensor]
Marks = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive steps of one rank, as views in the order of their use.

    Attributes:
        epoch: from 0.
        step: the epoch's step of the first global batch here, from 0.
        batch_rows: rows of each of these global batches, over all ranks.
        slices: for each step, for each virtual rank of this rank: its rows of each field by name
            (`COLUMNS` that the data has). A slice may be empty.
        marks: uint64, one a step: which rows of the source these slices are made of (`mark`).
        ends_epoch: whether the epoch's last step is here.
    """

    epoch: int
    step: int
    batch_rows: int
    slices: list[Tensors]
    marks: Marks
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
        self._source = rows
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
        position, left = min(step * size, rows), np.empty(0, np.int64)
        if position == rows:  # stopped after the epoch's last step, before its end was dealt with
            yield Chunk(epoch, step, size, [], mark(left.reshape(0, 1)), True)
        for window in order.windows(rows, seed=self._seed, epoch=epoch, position=position):
            stop = window.start + window.rows
            at = self._mine_between(max(position, window.start), stop) - window.start
            columns = self._gather(window, at, len(left))
            ids = np.concatenate([left, self._ids(window, at)])
            steps = min(len(ids) // sum(sizes), rows // size - step)
            used = steps * sum(sizes)
            ends = stop == rows and not rest
            if steps or ends:  # the last window may hold rows of other ranks alone
                self._gather.lend()
                marks = mark(ids[:used].reshape(steps, -1 if steps else 1))
                yield Chunk(epoch, step, size, _cut(columns, 0, sizes * steps), marks, ends)
            step += steps
            left = ids[used:]
            if stop == rows and rest:
                self._gather.lend()
                slices = _cut(columns, used, self._sizes(rest))
                yield Chunk(epoch, step, rest, slices, mark(left.reshape(1, -1)), True)
            position = stop

    def _ids(self, window: order.Window, at: order.Indices) -> order.Indices:
        """The numbers in the source of the rows ``at`` places of a window."""
        found, filled = np.empty(window.rows, np.int64), 0
        for start, stop in window.blocks.tolist():
            self._source.read(start, stop, {"row": found}, filled)
            filled += stop - start
        return found[window.order[at]]

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


def mark(rows: order.Indices) -> Marks:
    """What tells sets of rows apart: uint64 [n] of row numbers [n, m].

    The sum modulo 2^64 of each row number's SplitMix64 hash: it does not depend on the order, and
    marks of parts add up to the mark of the whole.

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators".
    """
    mixed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    total: Marks = mixed.sum(axis=1, dtype=np.uint64)
    return total


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


def _cut(columns: Tensors, start: int, sizes: list[int]) -> list[Tensors]:
    """Views of the rows from ``start`` on, of the given sizes."""
    stop = start + sum(sizes)
    if not sizes:
        return []
    cuts = [torch.split(column[start:stop], sizes) for column in columns.values()]
    return [dict(zip(columns, parts, strict=True)) for parts in zip(*cuts, strict=True)]
