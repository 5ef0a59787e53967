"""The sum over virtual ranks, in one fixed order whatever the world.

Floating-point addition is not associative, so an all-reduce gives other last bits for another
number of ranks. Here the V vectors of a step (one a virtual rank) are added along one binary tree
over [0, V) that V alone decides: the left part of each node is the largest power of two that fits.

Virtual ranks are dealt to the ranks in turn, so each pass over the ranks has the tree's next
leaves. They are added as they come, and at most one sum a level waits for what is right of it. With
one rank nothing is sent. Small vectors are gathered by all ranks, those of several passes at once.
Large ones are cut into a piece a rank: each rank gets its own piece of all of a pass's vectors,
adds it along the tree, and after the last pass gathers the other pieces. So a rank keeps one vector
of its own and about log2(V) pieces of sums; and as every number is added along the same tree, the
bits are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

CUT_FROM = 1 << 18  # numbers; below, one message costs more than the bytes that two save
Gather = Callable[[Tensor, Tensor], object]  # as `all_gather`, within one group
Vector = list[Tensor]  # one virtual rank's gradients and whatever else is summed with them


class TreeSum:
    """Adds vectors along the tree; they come from left to right.

    Args:
        lent: whether their memory is somebody else's: then what has to wait is copied.
    """

    def __init__(self, *, lent: bool = False) -> None:
        self._lent = lent
        self._waiting: list[tuple[int, Vector]] = []  # (leaves, their sum), ever fewer leaves

    def add(self, vector: Vector) -> None:
        """The next leaf. What it is made of is used up, unless it is lent."""
        leaves = 1
        if self._lent and not (self._waiting and self._waiting[-1][0] == 1):
            vector = [tensor.clone() for tensor in vector]
        while self._waiting and self._waiting[-1][0] == leaves:
            left = self._waiting.pop()[1]
            torch._foreach_add_(left, vector)
            vector, leaves = left, 2 * leaves
        self._waiting.append((leaves, vector))

    def total(self) -> Vector:
        """The sum of all leaves; from here on there are none."""
        vector = self._waiting.pop()[1]
        while self._waiting:
            left = self._waiting.pop()[1]
            torch._foreach_add_(left, vector)
            vector = left
        return vector


class Exchange(Protocol):
    """The passes of one step, for the tensors of one dtype."""

    def put(self, parts: Sequence[Tensor]) -> None:
        """This rank's vector of the next pass, as flat parts; none: it has none in this pass."""

    def total(self) -> Tensor:
        """[n], the sum of all vectors of all ranks, in memory of its own."""


class Reduction:
    """Adds the vectors of all virtual ranks; every rank gets the same bits.

    Args:
        rank: this rank.
        world: how many ranks there are.
        virtual_ranks: V, at least ``world``.
        group: the process group; None where the world is 1.
        gather: a faster way for what is small; None: the group's.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        virtual_ranks: int,
        group: dist.ProcessGroup | None,
        gather: Gather | None = None,
    ) -> None:
        self._rank, self._world, self._virtual_ranks = rank, world, virtual_ranks
        self._group = group
        self._gather = gather or partial(all_gather, group=group)
        self._exchanges: dict[tuple[torch.dtype, int], Exchange] = {}

    def __call__(self, vector_of: Callable[[int], Vector]) -> Vector:
        """The sum over all virtual ranks of ``vector_of(v)``, asked in order for this rank's v.

        The vectors' tensors are used up. Tensors keep their shapes and dtypes.
        """
        if self._world == 1:
            tree = TreeSum()
            for virtual_rank in range(self._virtual_ranks):
                tree.add(vector_of(virtual_rank))
            return tree.total()
        shapes: list[torch.Size] = []
        exchanges: list[tuple[list[int], Exchange]] = []
        for first in range(0, self._virtual_ranks, self._world):
            virtual_rank = first + self._rank
            vector = vector_of(virtual_rank) if virtual_rank < self._virtual_ranks else []
            if first == 0:  # every rank has one in the first pass, and all are of one kind
                shapes = [tensor.shape for tensor in vector]
                exchanges = list(self._exchanges_for(vector))
            for positions, exchange in exchanges:
                exchange.put([vector[p].reshape(-1) for p in positions] if vector else [])
        total: dict[int, Tensor] = {}
        for positions, exchange in exchanges:
            parts = torch.split(exchange.total(), [shapes[p].numel() for p in positions])
            total |= {p: part.view(shapes[p]) for p, part in zip(positions, parts, strict=True)}
        return [total[p] for p in range(len(shapes))]

    def _exchanges_for(self, vector: Vector) -> Iterator[tuple[list[int], Exchange]]:
        """The positions of a vector's tensors of each dtype, and what sends them."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in vector):
            positions = [p for p, tensor in enumerate(vector) if tensor.dtype == dtype]
            like = vector[positions[0]]
            size = sum(vector[p].numel() for p in positions)
            if (dtype, size) not in self._exchanges:
                is_cut = size >= CUT_FROM and self._virtual_ranks > 2
                shape = (like, size, self._world, self._virtual_ranks)
                self._exchanges[dtype, size] = (
                    InPieces(*shape, self._group) if is_cut else Gathered(*shape, self._gather)
                )
            yield positions, self._exchanges[dtype, size]


class Gathered:
    """Every rank gets all vectors, those of some passes in one message, and adds them itself."""

    def __init__(
        self,
        like: Tensor,
        size: int,
        world: int,
        virtual_ranks: int,
        gather: Gather,
    ) -> None:
        passes = -(-virtual_ranks // world)
        self._at_once = min(passes, max(1, CUT_FROM // max(size, 1)))
        self._own = like.new_zeros(self._at_once, size)
        self._everyone = like.new_zeros(world, self._at_once, size)
        self._world, self._virtual_ranks, self._gather = world, virtual_ranks, gather
        self._tree = TreeSum(lent=True)
        self._done = self._ready = 0  # passes of this step: added up; in ``_own``

    def put(self, parts: Sequence[Tensor]) -> None:
        if parts:
            torch.cat(list(parts), out=self._own[self._ready])
        self._ready += 1
        if self._ready == self._at_once:
            self._send()

    def total(self) -> Tensor:
        if self._ready:
            self._send()
        self._done = 0
        return self._tree.total()[0]

    def _send(self) -> None:
        self._gather(self._everyone.view(-1), self._own.view(-1))
        for ready in range(self._ready):
            first = (self._done + ready) * self._world
            for rank in range(min(self._world, self._virtual_ranks - first)):
                self._tree.add([self._everyone[rank, ready]])
        self._done, self._ready = self._done + self._ready, 0


class InPieces:
    """Every rank gets its own piece of all vectors, and adds that; then all get all pieces."""

    def __init__(
        self,
        like: Tensor,
        size: int,
        world: int,
        virtual_ranks: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._size, self._piece = size, -(-size // world)
        self._own = like.new_zeros(world, self._piece)  # by whose piece it is
        self._theirs = like.new_zeros(world, self._piece)  # by whose vector it is of
        self._world, self._virtual_ranks, self._group = world, virtual_ranks, group
        self._tree = TreeSum(lent=True)
        self._first = 0  # virtual rank of the next pass

    def put(self, parts: Sequence[Tensor]) -> None:
        if parts:
            torch.cat(list(parts), out=self._own.view(-1)[: self._size])
        dist.all_to_all_single(self._theirs, self._own, group=self._group)
        for rank in range(min(self._world, self._virtual_ranks - self._first)):
            self._tree.add([self._theirs[rank]])
        self._first += self._world

    def total(self) -> Tensor:
        self._first = 0
        piece = self._tree.total()[0]
        everyone = piece.new_empty(self._world * self._piece)
        all_gather(everyone, piece, self._group)
        return everyone[: self._size]


def all_gather(everyone: Tensor, own: Tensor, group: dist.ProcessGroup | None) -> None:
    """Puts the flat tensors of all ranks into one, by rank."""
    # Torch 2.13 renamed it.
    gather: Callable[..., object] = (
        getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    )
    gather(everyone, own, group=group)
