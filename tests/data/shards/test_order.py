"""The order: a permutation an epoch, the same from any position on, and uniform."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.shards import order

SEEDS = st.integers(0, 2**63 - 1)


def windows(rows: int, position: int = 0, **settings: int) -> list[order.Window]:
    return list(order.windows(rows, position=position, **settings))


def places(rows: int, **settings: int) -> list[int]:
    """The data's row at each position of an epoch."""
    found = windows(rows, **settings)
    return [row for window in found for row in window.indices().tolist()]


@st.composite
def settings(draw: st.DrawFn) -> dict[str, int]:
    return {
        "rows": draw(st.integers(0, 300)),
        "seed": draw(SEEDS),
        "epoch": draw(st.integers(0, 10_000)),
        "window_rows": draw(st.integers(1, 120)),
        "block_rows": draw(st.integers(1, 40)),
    }


@given(settings())
def test_every_row_stands_at_exactly_one_position(given: dict[str, int]) -> None:
    assert sorted(places(**given)) == list(range(given["rows"]))


@given(settings())
def test_windows_follow_each_other_and_none_is_a_small_rest(given: dict[str, int]) -> None:
    found = windows(**given)
    starts = [window.start for window in found]
    assert starts == list(np.cumsum([0, *(window.rows for window in found)])[:-1])
    blocks = [len(window.blocks) for window in found]
    assert max(blocks, default=0) - min(blocks, default=0) <= 1
    for window in found:
        assert sorted(window.order) == list(range(window.rows))
        # The memory that a window takes; a block is never cut, even if it is larger.
        assert window.rows <= max(given["window_rows"], given["block_rows"])


@given(settings(), st.data())
def test_from_a_position_on_the_windows_are_the_same(
    given: dict[str, int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, given["rows"]))
    rest = [w for w in windows(**given) if position < w.start + w.rows]
    found = windows(position=position, **given)
    assert [w.start for w in found] == [w.start for w in rest]
    for one, other in zip(found, rest, strict=True):
        np.testing.assert_array_equal(one.indices(), other.indices())
        np.testing.assert_array_equal(one.blocks, other.blocks)
    if found:
        assert found[0].start <= position


def test_the_same_for_the_same_seed_and_epoch_and_another_for_any_other() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 3), (2**62, 0), (2**63 - 1, 1)]
    for window_rows in (64, 4096):
        orders = [
            tuple(places(1000, seed=s, epoch=e, window_rows=window_rows, block_rows=16))
            for s, e in [*keys, *keys]
        ]
        assert orders[: len(keys)] == orders[len(keys) :]
        assert len(set(orders)) == len(keys)


@pytest.mark.parametrize(
    ("rows", "window_rows", "block_rows"),
    [
        pytest.param(6, 6, 1, id="one window"),
        pytest.param(6, 6, 2, id="one window of blocks"),
        pytest.param(6, 4, 2, id="two windows"),
        pytest.param(6, 2, 1, id="three windows"),
    ],
)
def test_each_row_is_as_likely_at_each_position(
    rows: int, window_rows: int, block_rows: int
) -> None:
    epochs = 3000
    counts = np.zeros((rows, rows))
    for epoch in range(epochs):
        found = places(rows, seed=11, epoch=epoch, window_rows=window_rows, block_rows=block_rows)
        counts[found, range(rows)] += 1
    expected = epochs / rows
    # Pearson's chi-square has (rows - 1)^2 = 25 degrees of freedom for single permutations, and
    # more spread where a block's rows go together; 60.1 is its 0.9999 quantile.
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < (60.1 if block_rows == 1 else 120.2)


def test_one_window_is_a_full_uniform_shuffle() -> None:
    """Each of the 24 orders of 4 rows comes as often, though the blocks hold two rows."""
    epochs = 6000
    counts = Counter(
        tuple(places(4, seed=5, epoch=epoch, window_rows=4, block_rows=2))
        for epoch in range(epochs)
    )
    assert len(counts) == 24
    expected = epochs / 24
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 57.1  # the 0.9999 quantile for 23 degrees of freedom


def test_the_shipped_window_holds_whole_blocks() -> None:
    """Else rows that fit in one window would not be shuffled as one."""
    assert order.WINDOW_ROWS % order.BLOCK_ROWS == 0
    (window,) = order.windows(order.WINDOW_ROWS, seed=0, epoch=0)
    assert window.rows == order.WINDOW_ROWS


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_steps_cover_all_rows_and_only_the_last_is_short(rows: int, batch_rows: int) -> None:
    steps = order.num_steps(rows, batch_rows)
    assert (steps - 1) * batch_rows < rows <= steps * batch_rows


@given(st.integers(0, 3000), st.integers(1, 64))
def test_slices_cut_a_batch_evenly(batch_rows: int, virtual_ranks: int) -> None:
    edges = order.slice_edges(batch_rows, virtual_ranks)
    assert edges[0] == 0
    assert edges[-1] == batch_rows
    sizes = [b - a for a, b in pairwise(edges)]
    assert len(sizes) == virtual_ranks
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 64), st.data())
def test_each_virtual_rank_has_one_rank_and_none_is_idle(
    virtual_ranks: int, data: st.DataObject
) -> None:
    world = data.draw(st.integers(1, virtual_ranks))
    shares = [order.virtual_ranks_of(rank, world, virtual_ranks) for rank in range(world)]
    assert [v for share in shares for v in share] == list(range(virtual_ranks))
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
