"""Which row is in which batch: a pure function of (rows, batch, virtual ranks, seed, epoch).

Integers in, indices out; the world, the engine and restarts do not enter. The epoch's sequence of
rows (`ddlflow.data.shards.sequence`) is cut into one lane a virtual rank, as long as all of its
slices: slice v of each global batch is the next of lane v. A lane is walked in windows of some
steps, the same steps for every lane, and the rows of a window are shuffled. Where all rows fit into
one window, that is a full uniform shuffle.

So each row comes once an epoch, the last global batch is simply shorter, a position is
(epoch, step), and whoever computes a lane reads no row of another.
"""

from dataclasses import dataclass

import numpy as np

from ddlflow.data.shards.sequence import Indices, RowSequence, Shuffled, generator

# Measured with 28 float32 a row on one core: copying blocks of 2,048 rows takes 1.03 of the time of
# one copy, and a window of 524,288 rows (59 MB) is gathered at 36 M rows/s. It mixes 256 places of
# the data.
BLOCK_ROWS = 2_048
BLOCK_BYTES = 512 << 10  # wide rows have smaller blocks, and so smaller windows: 128 MiB
WINDOW_BLOCKS = 256  # of a window, over all lanes together
LANE_WINDOW_BLOCKS = 4  # of a window in each lane, at least: else a lane of many mixes too little
LANE_BLOCKS = 64  # of a lane, at least: where there are few rows, blocks are smaller


@dataclass(frozen=True, slots=True)
class Window:
    """Some steps of one lane: a run of the sequence, and in which order its rows are taken.

    Attributes:
        blocks: [b, 2], the data's rows [begin, end) of each block or part of one, in the sequence.
        order: [rows], a permutation: the k-th row taken is the ``order[k]``-th of the blocks.
    """

    blocks: Indices
    order: Indices

    @property
    def rows(self) -> int:
        return len(self.order)

    def indices(self) -> Indices:
        """[rows], the data's rows as they are taken."""
        return self.rows_at(self.order)

    def rows_at(self, places: Indices) -> Indices:
        """The data's rows at some places of the blocks."""
        runs = [np.arange(begin, end) for begin, end in self.blocks.tolist()]
        return np.concatenate([np.empty(0, np.int64), *runs])[places]


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """The order of a training's rows: all that is known of it before any row is read.

    Attributes:
        rows: of the data; at least one.
        batch_rows: of a global batch; the last one of an epoch may have fewer.
        virtual_ranks: slices of a global batch, and lanes.
        seed: of the shuffling.
        row_bytes: what a row takes in memory: a window is bounded in bytes too.
    """

    rows: int
    batch_rows: int
    virtual_ranks: int
    seed: int
    row_bytes: int = 0

    @property
    def whole(self) -> int:
        """Steps of an epoch whose global batches have all their rows."""
        return self.rows // self.batch_rows

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return num_steps(self.rows, self.batch_rows)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch; each lane has so many."""
        blocks = max(WINDOW_BLOCKS, LANE_WINDOW_BLOCKS * self.virtual_ranks)
        steps = max(1, blocks * self._widest_block // self.batch_rows)
        return -(-self.steps // steps)

    def window_of(self, step: int) -> int:
        """The window that has a step of an epoch."""
        return ((step + 1) * self.num_windows - 1) // self.steps

    def steps_of(self, window: int) -> tuple[int, int]:
        """The steps [first, last) of a window; an epoch's are dealt evenly to its windows."""
        first, last = (self.steps * w // self.num_windows for w in (window, window + 1))
        return first, last

    def rows_of(self, step: int) -> int:
        """Rows of the global batch of a step of an epoch."""
        return min(self.batch_rows, self.rows - step * self.batch_rows)

    def slice_rows(self, lane: int, step: int) -> int:
        """Rows of a lane's slice of the global batch of a step of an epoch."""
        rows = self.rows_of(step)
        return self._edge(lane + 1, rows) - self._edge(lane, rows)

    def window(self, epoch: int, lane: int, window: int) -> Window:
        """The rows of a lane in a window of an epoch."""
        start, stop = (self._place(lane, step) for step in self.steps_of(window))
        random = generator(self.seed, epoch, Shuffled.WINDOW, lane, window)
        return Window(self._sequence(epoch).blocks(start, stop), random.permutation(stop - start))

    def rows_between(self, lane: int, first: int, last: int) -> int:
        """Rows of a lane in the steps [first, last) of an epoch."""
        return self._place(lane, last) - self._place(lane, first)

    def batch(self, epoch: int, step: int) -> Indices:
        """[rows], the data's rows of a global batch, slice by slice."""
        number = self.window_of(step)
        first, _ = self.steps_of(number)
        found = []
        for lane in range(self.virtual_ranks):
            at = self.rows_between(lane, first, step)
            taken = self.window(epoch, lane, number).indices()
            found.append(taken[at : at + self.slice_rows(lane, step)])
        return np.concatenate(found)

    def read_next(self, epoch: int, lane: int, window: int) -> Indices:
        """What a lane goes on to read from when it is through with what a window is read from.

        Returns:
            [n, 2], the data's rows [begin, end) of the next group's sections; none where the lane
            ends before.
        """
        sequence = self._sequence(epoch)
        here = self._place(lane, self.steps_of(window)[1])
        end = self._place(lane, self.steps)
        group = sequence.group_of(max(here - 1, 0)) + 1
        if end == self._place(lane, 0) or group > sequence.group_of(end - 1):
            return np.empty((0, 2), np.int64)
        return sequence.sections(group)

    @property
    def _widest_block(self) -> int:
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(self.row_bytes, 1)))

    def _sequence(self, epoch: int) -> RowSequence:
        fewer = max(1, self.rows // (self.virtual_ranks * LANE_BLOCKS))
        return RowSequence(self.rows, min(self._widest_block, fewer), self.seed, epoch)

    def _edge(self, lane: int, rows: int) -> int:
        """Where a lane's slice begins in a global batch of so many rows."""
        return rows * lane // self.virtual_ranks

    def _place(self, lane: int, step: int) -> int:
        """Where in the sequence a lane stands before a step of an epoch."""
        whole, rest = self.whole, self.rows % self.batch_rows
        begin, end = (self._edge(v, self.batch_rows) for v in (lane, lane + 1))
        first, last = (self._edge(v, rest) for v in (lane, lane + 1))
        place = whole * begin + first + min(step, whole) * (end - begin)
        return place + (last - first if step > whole else 0)


def num_steps(rows: int, batch_rows: int) -> int:
    """Global batches in an epoch; the last one is simply shorter."""
    return -(-rows // batch_rows)


def slice_edges(batch_rows: int, virtual_ranks: int) -> list[int]:
    """The [virtual_ranks + 1] edges that cut a global batch into its virtual ranks' slices."""
    return [batch_rows * v // virtual_ranks for v in range(virtual_ranks + 1)]


def num_sharing(batch_rows: int, virtual_ranks: int, world: int) -> int:
    """How many of the ranks have a row of a global batch."""
    edges = slice_edges(batch_rows, virtual_ranks)
    return len({v % world for v in range(virtual_ranks) if edges[v] < edges[v + 1]})


def virtual_ranks_of(rank: int, world: int, virtual_ranks: int) -> range:
    """The virtual ranks that a rank computes: in each pass over the ranks the next ones.

    So the virtual ranks of a pass are neighbours, and their sum can be sent on before the next.
    """
    return range(rank, virtual_ranks, world)
