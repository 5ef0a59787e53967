"""The sum over virtual ranks: one tree, the same bits whatever the world."""

import weakref
from typing import Any

import pytest
import torch

from ddlflow.data.shards.order import virtual_ranks_of
from ddlflow.train.parallel import tree
from ddlflow.train.parallel.tree import Reduction, TreeSum

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


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("virtual_ranks", [*range(1, 18), 63, 64, 65])
def test_the_sum_along_the_tree_is_the_reference(virtual_ranks: int, lent: bool) -> None:
    given_vectors = vectors(virtual_ranks)
    wanted = [added(list(parts)) for parts in zip(*vectors(virtual_ranks), strict=True)]
    tree = TreeSum(lent=lent)
    for _ in range(2):  # one tree serves step after step
        for number, vector in enumerate(given_vectors, 1):
            tree.add([tensor.clone() for tensor in vector])
            assert len(tree._waiting) <= number.bit_length()
        assert all(map(same_bits, tree.total(), wanted))


def test_what_is_lent_is_left_as_it_is() -> None:
    tree, buffer = TreeSum(lent=True), torch.empty(3)
    for value in range(1, 8):
        buffer.fill_(value)
        tree.add([buffer])
        assert buffer.tolist() == [value] * 3
    assert tree.total()[0].tolist() == [28.0] * 3


def test_another_order_of_adding_would_give_other_bits() -> None:
    """Else the tests here would pass with any order."""
    parts = [vector[0] for vector in vectors(7)]
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one + part
    assert not torch.equal(one_by_one, added(parts))


@pytest.mark.parametrize("virtual_ranks", range(1, 10))
@pytest.mark.parametrize("cut_from", [0, tree.CUT_FROM], ids=["in pieces", "at once"])
def test_the_same_bits_for_every_world_and_on_every_rank(
    ranks: Any, virtual_ranks: int, cut_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "CUT_FROM", cut_from)
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


@pytest.mark.parametrize("cut_from", [0, 1 << 18], ids=["in pieces", "at once"])
def test_a_rank_keeps_no_vector_longer_than_its_pass(
    ranks: Any, cut_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many virtual ranks it has: what it keeps of the others' are pieces of sums."""
    monkeypatch.setattr(tree, "CUT_FROM", cut_from)

    def reduce(rank: int, group: Any) -> int:
        alive: list[weakref.ref[torch.Tensor]] = []
        most = 0

        def vector_of(virtual_rank: int) -> list[torch.Tensor]:
            nonlocal most
            most = max(most, sum(one() is not None for one in alive))
            vector = [torch.full((1000,), float(virtual_rank))]
            alive.append(weakref.ref(vector[0]))
            return vector

        (total,) = Reduction(rank, 3, 31, group)(vector_of)
        assert total.tolist() == [31 * 30 / 2] * 1000
        return most

    assert ranks(3, reduce) == [1] * 3  # the last one's, while the next is computed


def test_one_rank_keeps_a_sum_a_level() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def vector_of(virtual_rank: int) -> list[torch.Tensor]:
        nonlocal most
        most = max(most, sum(one() is not None for one in alive))
        vector = [torch.ones(10)]
        alive.append(weakref.ref(vector[0]))
        return vector

    (total,) = Reduction(0, 1, 1000, None)(vector_of)
    assert total.tolist() == [1000.0] * 10
    assert most <= 11  # of 1,000 leaves


@pytest.mark.parametrize("world", [2, 3, 4])
def test_vectors_as_they_are_in_a_training_are_cut_by_themselves(ranks: Any, world: int) -> None:
    """Odd sizes above and below ``CUT_FROM``, two dtypes, a virtual rank too few for the ranks."""
    size, virtual_ranks = tree.CUT_FROM + 5, 2 * world + 1

    def vector(virtual_rank: int) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(virtual_rank)
        scale = 10.0 ** (virtual_rank % 7 - 3)
        long = torch.randn(size, generator=random) * scale
        return [long[:7], torch.randn(3, 5, generator=random).double() * scale, long[7:], long[0]]

    wanted = [added(list(p)) for p in zip(*map(vector, range(virtual_ranks)), strict=True)]

    def reduce(rank: int, group: Any) -> list[torch.Tensor]:
        return Reduction(rank, world, virtual_ranks, group)(
            lambda v: [*map(torch.clone, vector(v))]
        )

    for found in ranks(world, reduce):
        assert all(map(same_bits, found, wanted))
