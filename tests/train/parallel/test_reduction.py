"""The sum over virtual ranks: one tree, the same bits whatever the world."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.shards.order import virtual_ranks_of
from ddlflow.train.parallel import reduction
from ddlflow.train.parallel.reduction import Reduction, middle, subtrees, tree_sum

SHAPES = [(3, 4), (), (5,)]


def vectors(virtual_ranks: int, dtypes: Any = (torch.float32,) * 3) -> list[list[torch.Tensor]]:
    """Numbers of very different size: another order of adding gives other last bits."""
    random = torch.Generator().manual_seed(virtual_ranks)

    def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        sizes = 10.0 ** torch.randint(-4, 5, shape, generator=random)
        return (torch.randn(shape, generator=random) * sizes).to(dtype)

    return [
        [tensor(shape, dtype) for shape, dtype in zip(SHAPES, dtypes, strict=True)]
        for _ in range(virtual_ranks)
    ]


def added(parts: list[torch.Tensor]) -> torch.Tensor:
    """The tree, said once more: the left half is the largest power of two below the number."""
    if len(parts) == 1:
        return parts[0]
    left = 1
    while left * 2 < len(parts):
        left *= 2
    return added(parts[:left]) + added(parts[left:])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    assert one.dtype == other.dtype
    return one.shape == other.shape and torch.equal(one, other)


@given(st.integers(1, 200))
def test_the_tree_is_cut_at_the_largest_power_of_two(size: int) -> None:
    if size == 1:
        return
    for start in (0, 5):
        left = middle((start, start + size)) - start
        assert left & (left - 1) == 0
        assert left < size <= 2 * left


@given(st.integers(1, 70), st.data())
def test_a_ranks_subtrees_cover_its_range_and_are_the_largest(
    virtual_ranks: int, data: st.DataObject
) -> None:
    world = data.draw(st.integers(1, virtual_ranks))
    seen = []
    for rank in range(world):
        mine = virtual_ranks_of(rank, world, virtual_ranks)
        nodes = list(subtrees((0, virtual_ranks), (mine.start, mine.stop)))
        assert [v for start, stop in nodes for v in range(start, stop)] == list(mine)
        seen += nodes
        if rank in (0, world - 1):  # a range at an end of the tree is a few subtrees
            assert len(nodes) <= 2 * virtual_ranks.bit_length()
    assert [v for start, stop in seen for v in range(start, stop)] == list(range(virtual_ranks))
    assert world > 1 or seen == [(0, virtual_ranks)]


@pytest.mark.parametrize("virtual_ranks", range(1, 10))
def test_the_sum_along_the_tree_is_the_reference(virtual_ranks: int) -> None:
    given_vectors = vectors(virtual_ranks)
    wanted = [added(list(parts)) for parts in zip(*vectors(virtual_ranks), strict=True)]

    def leaf(node: tuple[int, int]) -> list[torch.Tensor] | None:
        return given_vectors[node[0]] if node[1] - node[0] == 1 else None

    found = tree_sum((0, virtual_ranks), leaf)
    assert all(map(same_bits, found, wanted))


def test_another_order_of_adding_would_give_other_bits() -> None:
    """Else the tests here would pass with any order."""
    parts = [vector[0] for vector in vectors(7)]
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one + part
    assert not torch.equal(one_by_one, added(parts))


@pytest.mark.parametrize("virtual_ranks", range(1, 10))
@pytest.mark.parametrize("cut_from", [0, reduction.CUT_FROM], ids=["in pieces", "at once"])
def test_the_same_bits_for_every_world_and_on_every_rank(
    ranks: Any, virtual_ranks: int, cut_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "CUT_FROM", cut_from)
    dtypes = (torch.float32, torch.float64, torch.float32)
    wanted = [added(list(parts)) for parts in zip(*vectors(virtual_ranks, dtypes), strict=True)]
    for world in range(1, min(5, virtual_ranks) + 1):
        asked: list[list[int]] = [[] for _ in range(world)]

        def reduce(
            rank: int, group: Any, world: int = world, asked: list[list[int]] = asked
        ) -> list[torch.Tensor]:
            given_vectors = vectors(virtual_ranks, dtypes)

            def vector_of(virtual_rank: int) -> list[torch.Tensor]:
                asked[rank].append(virtual_rank)
                return given_vectors[virtual_rank]

            add_up = Reduction(rank, world, virtual_ranks, group if world > 1 else None)
            return add_up(vector_of)

        for found in ranks(world, reduce):
            assert len(found) == len(wanted)
            assert all(map(same_bits, found, wanted))
        shares = [list(virtual_ranks_of(rank, world, virtual_ranks)) for rank in range(world)]
        assert asked == shares  # each its own, once, in order


def test_a_sum_can_be_used_again_and_again(ranks: Any) -> None:
    """A training calls one reduction for all its steps, with its results in use as gradients."""

    def reduce(rank: int, group: Any) -> list[torch.Tensor]:
        add_up = Reduction(rank, 2, 5, group)
        first = add_up(lambda v: vectors(5)[v])
        kept = [tensor.clone() for tensor in first]
        second = add_up(lambda v: [t * 0 for t in vectors(5)[v]])
        assert not any(t.any() for t in second)
        assert all(map(same_bits, first, kept))
        return add_up(lambda v: vectors(5)[v])

    wanted = [added(list(parts)) for parts in zip(*vectors(5), strict=True)]
    for found in ranks(2, reduce):
        assert all(map(same_bits, found, wanted))
