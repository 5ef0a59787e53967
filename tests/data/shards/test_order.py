"""The order: lanes of a permutation an epoch, the same from any step on, and uniform."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.shards import order, sequence
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.sequence import RowSequence

SEEDS = st.integers(0, 2**63 - 1)
HUGE = BatchOrder(rows=10**12 + 7, batch_rows=1 << 20, virtual_ranks=16_384, seed=3, row_bytes=120)


@contextmanager
def small(**constants: int) -> Iterator[None]:
    """Blocks, sections, groups and windows of a few rows."""
    caches = (sequence._sections, sequence._short_section, sequence._group)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            module = sequence if name in {"SECTION_BLOCKS", "GROUP_SECTIONS"} else order
            patch.setattr(module, name, value)
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


CONSTANTS = st.fixed_dictionaries(
    {
        "BLOCK_ROWS": st.integers(1, 20),
        "WINDOW_BLOCKS": st.integers(1, 20),
        "LANE_WINDOW_BLOCKS": st.integers(1, 4),
        "LANE_BLOCKS": st.integers(1, 8),
        "SECTION_BLOCKS": st.integers(1, 6),
        "GROUP_SECTIONS": st.integers(1, 5),
    }
)
ORDERS = st.builds(
    BatchOrder,
    rows=st.integers(1, 700),
    batch_rows=st.integers(1, 150),
    virtual_ranks=st.integers(1, 12),
    seed=SEEDS,
    row_bytes=st.sampled_from([0, 10, 100_000]),
)


def epoch_of(one: BatchOrder, epoch: int) -> list[int]:
    """The data's rows of an epoch's global batches, one after the other."""
    return [row for step in range(one.steps) for row in one.batch(epoch, step).tolist()]


@given(ORDERS, CONSTANTS, st.integers(0, 10_000))
def test_every_row_is_in_exactly_one_batch_of_an_epoch(
    one: BatchOrder, constants: dict[str, int], epoch: int
) -> None:
    with small(**constants):
        assert sorted(epoch_of(one, epoch)) == list(range(one.rows))


@given(ORDERS, CONSTANTS)
def test_batches_and_slices_have_the_sizes_that_they_are_asked_to_have(
    one: BatchOrder, constants: dict[str, int]
) -> None:
    with small(**constants):
        for step in range(one.steps):
            size = min(one.batch_rows, one.rows - step * one.batch_rows)
            edges = [size * v // one.virtual_ranks for v in range(one.virtual_ranks + 1)]
            sizes = [one.slice_rows(v, step) for v in range(one.virtual_ranks)]
            assert sizes == [b - a for a, b in pairwise(edges)]
            assert len(one.batch(5, step)) == one.rows_of(step) == size


@given(ORDERS, CONSTANTS)
def test_windows_are_runs_of_steps_and_none_is_a_small_rest(
    one: BatchOrder, constants: dict[str, int]
) -> None:
    with small(**constants):
        steps = [one.steps_of(w) for w in range(one.num_windows)]
        assert [s for first, last in steps for s in range(first, last)] == list(range(one.steps))
        counts = [last - first for first, last in steps]
        assert max(counts) - min(counts) <= 1
        for number, (first, last) in enumerate(steps):
            assert {one.window_of(step) for step in range(first, last)} == {number}
            rows = 0
            for lane in range(one.virtual_ranks):
                window = one.window(2, lane, number)
                assert window.rows == one.rows_between(lane, first, last)
                assert sorted(window.order) == list(range(window.rows))
                assert (window.blocks[:, 1] - window.blocks[:, 0]).sum() == window.rows
                rows += window.rows
            # What all lanes together hold in memory: one batch is never cut.
            blocks = max(order.WINDOW_BLOCKS, order.LANE_WINDOW_BLOCKS * one.virtual_ranks)
            widest = max(1, min(order.BLOCK_ROWS, order.BLOCK_BYTES // max(one.row_bytes, 1)))
            assert rows <= max(blocks * widest, one.batch_rows)


@given(ORDERS, CONSTANTS)
def test_lanes_are_disjoint_and_of_fixed_length(one: BatchOrder, constants: dict[str, int]) -> None:
    """So a rank reads no row of another's, and every lane ends with the epoch."""
    with small(**constants):
        lanes = [
            {r for w in range(one.num_windows) for r in one.window(0, v, w).indices().tolist()}
            for v in range(one.virtual_ranks)
        ]
    assert sum(map(len, lanes)) == len(set.union(*lanes)) == one.rows
    whole, rest = divmod(one.rows, one.batch_rows)
    for v, lane in enumerate(lanes):
        slices = [
            n * (v + 1) // one.virtual_ranks - n * v // one.virtual_ranks
            for n in (one.batch_rows, rest)
        ]
        assert len(lane) == whole * slices[0] + slices[1]


def test_the_same_for_the_same_seed_and_epoch_and_another_for_any_other() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 3), (2**62, 0), (2**63 - 1, 1)]
    for constants in ({}, {"BLOCK_ROWS": 16, "WINDOW_BLOCKS": 4, "SECTION_BLOCKS": 8}):
        with small(**constants):
            found = [tuple(epoch_of(BatchOrder(1000, 50, 3, s), e)) for s, e in [*keys, *keys]]
        assert found[: len(keys)] == found[len(keys) :]
        assert len(set(found)) == len(keys)


@pytest.mark.parametrize(
    ("constants", "freedom"),
    [
        pytest.param({}, 1, id="one window"),
        pytest.param({"BLOCK_ROWS": 2, "LANE_BLOCKS": 1}, 1, id="one window of blocks"),
        pytest.param({"BLOCK_ROWS": 1, "WINDOW_BLOCKS": 2}, 1, id="three windows"),
        pytest.param({"BLOCK_ROWS": 2, "WINDOW_BLOCKS": 1, "LANE_BLOCKS": 1}, 2, id="blocks"),
        pytest.param(
            {"BLOCK_ROWS": 1, "WINDOW_BLOCKS": 2, "SECTION_BLOCKS": 1, "GROUP_SECTIONS": 2},
            1,
            id="groups",
        ),
    ],
)
def test_each_row_is_as_likely_at_each_position(constants: dict[str, int], freedom: int) -> None:
    rows, epochs = 6, 3000
    counts = np.zeros((rows, rows))
    with small(LANE_WINDOW_BLOCKS=1, **constants):
        for epoch in range(epochs):
            counts[epoch_of(BatchOrder(rows, 2, 1, seed=11), epoch), range(rows)] += 1
    expected = epochs / rows
    # Pearson's chi-square has (rows - 1)^2 = 25 degrees of freedom for single permutations, and
    # more spread where rows go together; 60.1 is its 0.9999 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 60.1 * freedom


def test_a_short_last_section_is_as_likely_at_each_place() -> None:
    epochs = 2000
    with small(BLOCK_ROWS=1, SECTION_BLOCKS=4, GROUP_SECTIONS=1):
        firsts = [int(RowSequence(10, 1, 5, epoch).blocks(0, 1)[0, 0]) for epoch in range(epochs)]
    counts = np.bincount(firsts, minlength=10)
    shares = np.array([counts[:4].sum(), counts[4:8].sum(), counts[8:].sum()])
    expected = epochs / 3
    assert ((shares - expected) ** 2 / expected).sum() < 18.4  # the 0.9999 quantile for 2 degrees


@pytest.mark.parametrize("virtual_ranks", [2, 5])
def test_each_row_is_as_likely_in_each_lane(virtual_ranks: int) -> None:
    """Neighbours go together, but where to is as good as chance, as numpy's own shuffle has it."""
    rows, epochs, numbers = 640, 400, range(0, 640, 37)
    counts = np.zeros((len(numbers), virtual_ranks))
    one = BatchOrder(rows, 8 * virtual_ranks, virtual_ranks, seed=4)
    for epoch in range(epochs):
        for lane in range(virtual_ranks):
            counts[:, lane] += np.isin(numbers, one.window(epoch, lane, 0).indices())
    assert one.num_windows == 1
    assert (counts.sum(1) == epochs).all()
    expected = epochs / virtual_ranks
    chi_square = ((counts - expected) ** 2 / expected).sum(1)
    assert chi_square.mean() < {2: 2.5, 5: 7.0}[virtual_ranks]  # 1 and 4 degrees of freedom
    assert chi_square.max() < {2: 15.2, 5: 23.6}[virtual_ranks] * 1.3


def test_one_window_is_a_full_uniform_shuffle() -> None:
    """Each of the 24 orders of 4 rows comes as often, though the blocks hold two rows."""
    epochs = 6000
    with small(BLOCK_ROWS=2, LANE_BLOCKS=1):
        counts = Counter(
            tuple(epoch_of(BatchOrder(4, 4, 1, seed=5), epoch)) for epoch in range(epochs)
        )
    assert len(counts) == 24
    expected = epochs / 24
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 57.1  # the 0.9999 quantile for 23 degrees of freedom


@pytest.mark.parametrize(("rows", "virtual_ranks"), [(3_000_000, 1), (3_000_000, 8), (60_000, 4)])
def test_batches_of_data_that_is_sorted_are_mixed(rows: int, virtual_ranks: int) -> None:
    """The data's first half is one class: every slice has about as many of both."""
    one = BatchOrder(rows, 4_096, virtual_ranks, seed=2, row_bytes=116)
    shares = []
    for lane in range(virtual_ranks):
        window = one.window(0, lane, one.num_windows // 2).indices()
        size = one.slice_rows(lane, 0)
        sizes = range(0, len(window) // size * size, size)
        shares += [float((window[at : at + size] < rows // 2).mean()) for at in sizes]
        # The window itself is as even as some dozens of blocks are.
        assert abs(float((window < rows // 2).mean()) - 0.5) < 0.25
    assert abs(np.mean(shares) - 0.5) < 0.1


def test_a_long_run_of_huge_data_is_read_from_few_runs_of_it_known_ahead() -> None:
    lane = 4711
    group = 32 * 512 * 2048
    seen: list[set[tuple[int, int]]] = []
    for number in range(HUGE.num_windows):
        ahead = {(a, b) for a, b in HUGE.read_next(0, lane, number).tolist()}
        if not seen or ahead != seen[-1]:
            seen.append(ahead)
    assert seen[-1] == set()  # the lane's last group
    assert len(seen) <= HUGE.rows // HUGE.virtual_ranks // group + 2
    for runs in seen[:-1]:
        assert len(runs) == 32
        assert sum(b - a for a, b in runs) == group
    last = HUGE.window(0, lane, HUGE.num_windows - 1).blocks
    assert all(any(a <= begin and end <= b for a, b in seen[-2]) for begin, end in last.tolist())


def test_the_first_window_of_huge_data_takes_no_memory_but_its_own() -> None:
    """The first window of any lane of 1e12 rows, in no more memory than its own."""
    for cache in (sequence._sections, sequence._short_section, sequence._group):
        cache.cache_clear()
    tracemalloc.start()
    try:
        found = [HUGE.window(4, lane, 0) for lane in (0, 1, 9_999, 16_383)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 100e6
    assert sum(window.rows for window in found) < 4 * 10_000
    assert all(0 <= a < b <= HUGE.rows for w in found for a, b in w.blocks.tolist())
    rows = [row for window in found for row in window.indices().tolist()]
    assert len(set(rows)) == len(rows)


@given(st.integers(1, 10**13), st.integers(1, 10**7), st.integers(1, 20_000), st.data())
def test_the_arithmetic_of_huge_data(
    rows: int, batch_rows: int, virtual_ranks: int, data: st.DataObject
) -> None:
    one = BatchOrder(rows, min(rows, batch_rows), virtual_ranks, seed=1)
    lanes = {data.draw(st.integers(0, virtual_ranks - 1)), 0, virtual_ranks - 1}
    step = data.draw(st.integers(0, one.steps - 1))
    first, last = one.steps_of(one.window_of(step))
    assert 0 <= first <= step < last <= one.steps
    assert one._place(0, 0) == 0
    assert one._place(virtual_ranks - 1, one.steps) == rows
    for lane in lanes:
        if lane:
            assert one._place(lane, 0) == one._place(lane - 1, one.steps)
        assert one.rows_between(lane, step, step + 1) == one.slice_rows(lane, step)


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 99), CONSTANTS, st.data())
def test_the_sequence_is_one_permutation_however_it_is_cut(
    rows: int, block_rows: int, seed: int, constants: dict[str, int], data: st.DataObject
) -> None:
    with small(**constants):
        one = RowSequence(rows, block_rows, seed, 3)
        whole = one.blocks(0, rows)
        cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=5)))
        parts = [one.blocks(a, b) for a, b in pairwise([0, *cuts, rows])]
        found = [[r for a, b in some.tolist() for r in range(a, b)] for some in (whole, *parts)]
    assert sorted(found[0]) == list(range(rows))
    assert found[0] == [row for part in found[1:] for row in part]
    for a, b in whole.tolist():
        assert a % block_rows == 0
        assert b == min(a + block_rows, rows)


def test_wide_rows_have_smaller_windows() -> None:
    def window_bytes(row_bytes: int) -> int:
        one = BatchOrder(10**7, 256, 1, 0, row_bytes)
        return one.window(0, 0, 0).rows * row_bytes

    assert window_bytes(116) > 50e6
    assert all(window_bytes(n) <= 256 * order.BLOCK_BYTES for n in (116, 784, 3_136, 150_528))


@given(st.integers(0, 3000), st.integers(1, 64))
def test_slices_cut_a_batch_evenly(batch_rows: int, virtual_ranks: int) -> None:
    edges = order.slice_edges(batch_rows, virtual_ranks)
    assert edges[0] == 0
    assert edges[-1] == batch_rows
    sizes = [b - a for a, b in pairwise(edges)]
    assert len(sizes) == virtual_ranks
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 300), st.integers(1, 64), st.data())
def test_each_virtual_rank_has_one_rank_and_none_is_idle(
    batch_rows: int, virtual_ranks: int, data: st.DataObject
) -> None:
    world = data.draw(st.integers(1, virtual_ranks))
    shares = [order.virtual_ranks_of(rank, world, virtual_ranks) for rank in range(world)]
    assert sorted(v for share in shares for v in share) == list(range(virtual_ranks))
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    for at in range(max(sizes)):  # those of one pass are neighbours
        one_pass = [share[at] for share in shares if at < len(share)]
        assert one_pass == list(range(at * world, at * world + len(one_pass)))
    edges = order.slice_edges(batch_rows, virtual_ranks)
    have = [any(edges[v] < edges[v + 1] for v in share) for share in shares]
    assert order.num_sharing(batch_rows, virtual_ranks, world) == sum(have)
