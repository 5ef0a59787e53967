"""Shards -> the slices of each global batch that one rank computes.

Rows stay in the page cache: of a window of the order, the blocks of this rank's lanes are copied
from the mapped shards, standardised on the way, and their rows are gathered in the lanes' order,
all in a thread of its own while the window before is trained on. What the training loop gets is
lists of ready views, so it neither indexes nor copies. Rows of other ranks are not read. Memory is
that of three windows, however many rows there are. Where the rows fit in half of a GPU's free
memory they are kept there and gathered there.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ddlflow.data.shards.order import BatchOrder, Window
from ddlflow.data.shards.rows import Arrays, Rows
from ddlflow.data.shards.sequence import Indices

Tensors = dict[str, torch.Tensor]
Marks = npt.NDArray[np.uint64]
Picked = tuple[Window, Indices]  # some rows of a lane's window: their places in its blocks
LOAD_ROWS = 524_288  # that are copied at a time where all rows are read


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive steps of one rank, as views in the order of their use.

    Attributes:
        epoch: from 0.
        step: the epoch's step of the first global batch here, from 0.
        batch_rows: rows of each of these global batches, over all ranks.
        slices: for each step, for each virtual rank of this rank: its rows of each field by name
            (`Rows.inputs`, weight, label). A slice may be empty.
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

    Attributes:
        order: which row is in which batch.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_rows: int,
        virtual_ranks: int,
        mine: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._device = device
        self._mine = mine
        batch_rows = min(batch_rows, max(rows.rows, 1))
        self.order = BatchOrder(rows.rows, batch_rows, virtual_ranks, seed, rows.row_bytes)
        self._gather = Resident(rows, device) if fits_on(device, rows) else Mapped(rows, device)

    def stream(self, *, epoch: int, step: int, epochs: int) -> Iterator[Chunk]:
        """All chunks from (epoch, step) on; each is valid until the next is asked for."""
        fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        chunks = (
            chunk
            for e in range(epoch, epochs)
            for chunk in self._epoch(e, step if e == epoch else 0, fetcher)
        )
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
                ahead = pool.submit(next, chunks, None)
                while (chunk := ahead.result()) is not None:
                    ahead = pool.submit(next, chunks, None)
                    yield chunk
        finally:
            fetcher.shutdown(wait=False, cancel_futures=True)

    def _epoch(self, epoch: int, step: int, fetcher: Executor) -> Iterator[Chunk]:
        """This rank's steps of an epoch, from one on: window by window."""
        order = self.order
        if step >= order.steps:  # stopped between the last step and the epoch's end
            yield Chunk(epoch, step, order.batch_rows, [], np.empty(0, np.uint64), True)
            return
        for number in range(order.window_of(step), order.num_windows):
            first, last = order.steps_of(number)
            first = max(first, step)
            lanes = [self._lane(epoch, lane, number, first) for lane in self._mine]
            self._rows.fetch(np.concatenate([window.blocks for window, _ in lanes]))
            ahead = np.concatenate([order.read_next(epoch, lane, number) for lane in self._mine])
            fetcher.submit(self._rows.fetch, ahead)  # what fails here is asked for again
            columns = self._gather(lanes)
            hashes = [hashed(self._numbers(*lane)) for lane in lanes]
            for start, stop in ((first, min(last, order.whole)), (max(first, order.whole), last)):
                if start >= stop:
                    continue
                slices, marks = self._cut(columns, hashes, first, start, stop)
                ends = stop == order.steps
                yield Chunk(epoch, start, order.rows_of(start), slices, marks, ends)

    def _lane(self, epoch: int, lane: int, number: int, step: int) -> Picked:
        """A lane's rows of a window from a step on."""
        window = self.order.window(epoch, lane, number)
        first, _ = self.order.steps_of(number)
        return window, window.order[self.order.rows_between(lane, first, step) :]

    def _numbers(self, window: Window, picked: Indices) -> Indices:
        """The numbers in the source of the picked rows of a window."""
        found, filled = np.empty(window.rows, np.int64), 0
        for start, stop in window.blocks.tolist():
            self._rows.read(start, stop, {"row": found}, filled)
            filled += stop - start
        return found[picked]

    def _cut(
        self, columns: Tensors, hashes: Sequence[Marks], first: int, start: int, stop: int
    ) -> tuple[list[Tensors], Marks]:
        """Views of the slices of the steps [start, stop), and these steps' marks.

        Args:
            columns: the rows of this rank's lanes from step ``first`` on, lane by lane.
            hashes: of these rows, one array a lane.
            first: a step of the epoch, as ``start`` and ``stop``.
        """
        steps, at = stop - start, 0
        marks = np.zeros(steps, np.uint64)
        by_lane: list[list[Tensors]] = []
        for lane, hashes_of_lane in zip(self._mine, hashes, strict=True):
            size = self.order.slice_rows(lane, start)
            begin = self.order.rows_between(lane, first, start)
            cuts = [
                torch.split(column[at + begin : at + begin + steps * size], [size] * steps)
                for column in columns.values()
            ]
            by_lane.append([dict(zip(columns, p, strict=True)) for p in zip(*cuts, strict=True)])
            of_steps = hashes_of_lane[begin : begin + steps * size]
            marks += of_steps.reshape(steps, size).sum(axis=1, dtype=np.uint64)
            at += len(hashes_of_lane)
        slices = [one for step in zip(*by_lane, strict=True) for one in step]
        return [self._with_sequences(one) for one in slices], marks

    def _with_sequences(self, batch: Tensors) -> Tensors:
        """A slice with its sequences in place of their runs, padded to its own longest."""
        runs = {name: batch.pop(name).numpy() for name in self._rows.sequences}
        for name, array in self._rows.ready(runs).items():
            batch[name] = torch.from_numpy(array).to(self._device)
        return batch


class Mapped:
    """Gathers from mapped shards, window by window."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._blocks: Arrays = {}
        # In use, and being filled: kept, as fresh memory costs a page fault each 4 KiB.
        self._buffers: tuple[Arrays, Arrays] = {}, {}
        self._standardised: tuple[Arrays, Arrays] = {}, {}  # of tensors

    def __call__(self, lanes: Sequence[Picked]) -> Tensors:
        """The picked rows of each lane's window, one lane after the other.

        They are valid until this is called for the second time after.
        """
        self._buffers, self._standardised = self._buffers[::-1], self._standardised[::-1]
        target = self._buffers[0]
        self._hold(self._blocks, max(window.rows for window, _ in lanes), pinned=False)
        total = sum(len(picked) for _, picked in lanes)
        self._hold(target, total, pinned=self._device.type == "cuda")
        at = 0
        for window, picked in lanes:
            filled = 0
            for start, stop in window.blocks.tolist():
                self._rows.read(start, stop, self._blocks, filled)
                filled += stop - start
            for name, source in self._blocks.items():
                out = target[name][at : at + len(picked)]
                np.take(source, picked, axis=0, out=out, mode="clip")
            at += len(picked)
        return self._ready({name: array[:total] for name, array in target.items()})

    def _ready(self, raw: Arrays) -> Tensors:
        """What was gathered, tensors standardised; of sequences the runs, for the CPU."""
        runs = {name: raw.pop(name) for name in self._rows.sequences}
        out = self._standardised[0]
        for name in self._rows.tensors:
            if name in raw and len(out.get(name, ())) < len(raw[name]):
                shape, pinned = raw[name].shape, self._device.type == "cuda"
                out[name] = torch.empty(shape, pin_memory=pinned).numpy()
        own = {name: out[name][: len(raw[name])] for name in out}
        found = self._rows.ready(raw, out=own)
        tensors = {n: torch.from_numpy(array).to(self._device) for n, array in found.items()}
        return tensors | {name: torch.from_numpy(array) for name, array in runs.items()}

    def _hold(self, arrays: Arrays, rows: int, *, pinned: bool) -> None:
        """Makes the arrays of all columns long enough."""
        for name, like in self._rows.empty(0).items():
            if name not in arrays or len(arrays[name]) < rows:
                dtype = torch.from_numpy(like).dtype
                shape = (rows, *like.shape[1:])
                arrays[name] = torch.empty(shape, dtype=dtype, pin_memory=pinned).numpy()


class Resident:
    """Gathers on the device, where all rows stay."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._device = device
        self._columns = load(rows, device)

    def __call__(self, lanes: Sequence[Picked]) -> Tensors:
        """As `Mapped`; but fresh tensors are nobody else's."""
        rows = np.concatenate([window.rows_at(picked) for window, picked in lanes])
        index = torch.from_numpy(rows).to(self._device)
        return {name: column.index_select(0, index) for name, column in self._columns.items()}


def hashed(rows: Indices) -> Marks:
    """uint64 [n], each row number's SplitMix64 hash.

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators".
    """
    mixed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def mark(rows: Indices) -> Marks:
    """What tells sets of rows apart: uint64 [n] of row numbers [n, m].

    The sum modulo 2^64 of each row number's hash: it does not depend on the order, and marks of
    parts add up to the mark of the whole.
    """
    total: Marks = hashed(rows).sum(axis=1, dtype=np.uint64)
    return total


def load(rows: Rows, device: torch.device) -> Tensors:
    """All rows on a device, standardised, by way of a bounded memory."""
    columns: Tensors = {}
    rows.fetch(np.array([[0, rows.rows]]))
    step = rows.piece_rows(LOAD_ROWS)
    for start in range(0, rows.rows, step):
        stop = min(rows.rows, start + step)
        for name, array in rows.batch(start, stop, rows.empty(stop - start)).items():
            if name not in columns:
                dtype = torch.from_numpy(array[:0]).dtype
                shape = (rows.rows, *array.shape[1:])
                columns[name] = torch.empty(shape, dtype=dtype, device=device)
            columns[name][start:stop] = torch.from_numpy(array)
    return columns


def fits_on(device: torch.device, rows: Rows) -> bool:
    """Whether all rows fit in half of a GPU's free memory. (A CPU reads the page cache.)"""
    if device.type != "cuda" or rows.sequences:  # which are as long as their batch's longest
        return False
    return rows.rows * rows.row_bytes <= torch.cuda.mem_get_info(device)[0] // 2
