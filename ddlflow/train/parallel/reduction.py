"""The sum over virtual ranks, in one fixed order whatever the world.

Floating-point addition is not associative, so an all-reduce gives other last bits for another
number of ranks. Here the V vectors of a step (one a virtual rank) are added along one binary tree
over [0, V) that V alone decides. A rank adds the whole subtrees that lie in its own range; the few
subtree sums that are left are gathered by all ranks, and each adds them along the rest of the tree.
With one rank nothing is sent; with V = world each rank sends one vector.

Large vectors over more than two ranks are cut into a piece a rank instead: each rank gets all
ranks' sums of its own piece, adds them along the tree, and gathers the other pieces. That is what a
ring all-reduce sends, about two vectors a rank however many ranks there are, and as every number is
added along the same tree, the bits are the same.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from ddlflow.data.shards.order import virtual_ranks_of

CUT_FROM = 1 << 18  # numbers; below, one message costs more than the bytes that two save
Node = tuple[int, int]  # the virtual ranks [start, stop) whose sum it is
Vector = list[torch.Tensor]  # one virtual rank's gradients and whatever else is summed with them


def middle(node: Node) -> int:
    """Where the tree cuts a node in two: the left part is the largest power of two that fits."""
    return node[0] + (1 << (node[1] - node[0] - 1).bit_length() - 1)


def subtrees(node: Node, inside: Node) -> Iterator[Node]:
    """The largest nodes of the tree under ``node`` that lie in ``inside``, from left to right."""
    if inside[0] <= node[0] and node[1] <= inside[1]:
        yield node
    elif node[0] < inside[1] and inside[0] < node[1]:
        cut = middle(node)
        yield from subtrees((node[0], cut), inside)
        yield from subtrees((cut, node[1]), inside)


def tree_sum(node: Node, leaf: Callable[[Node], Vector | None]) -> Vector:
    """The sum of a node: what ``leaf`` has of it, or else its two halves added.

    The right half is added into the left one in place: a leaf's vector is used up.
    """
    known = leaf(node)
    if known is not None:
        return known
    cut = middle(node)
    left = tree_sum((node[0], cut), leaf)
    right = tree_sum((cut, node[1]), leaf)
    torch._foreach_add_(left, right)
    return left


class Reduction:
    """Adds the vectors of all virtual ranks; every rank gets the same bits.

    Args:
        rank: this rank.
        world: how many ranks there are.
        virtual_ranks: V, at least ``world``.
        group: the process group; None where the world is 1.
    """

    def __init__(
        self, rank: int, world: int, virtual_ranks: int, group: dist.ProcessGroup | None
    ) -> None:
        self._root = (0, virtual_ranks)
        self._group = group
        self._world = world
        self._nodes = [
            list(subtrees(self._root, (mine.start, mine.stop)))
            for mine in (virtual_ranks_of(r, world, virtual_ranks) for r in range(world))
        ]
        self._mine = self._nodes[rank]
        self._most = max(map(len, self._nodes))  # gathered blocks are of one size
        # Torch 2.13 renamed it.
        self._all_gather: Callable[..., object] = (
            getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        )

    def __call__(self, vector_of: Callable[[int], Vector]) -> Vector:
        """The sum over all virtual ranks of ``vector_of(v)``, asked in order for this rank's v.

        The vectors' tensors are used up. Tensors keep their shapes and dtypes.
        """

        def leaf(node: Node) -> Vector | None:
            return vector_of(node[0]) if node[1] - node[0] == 1 else None

        sums = [tree_sum(node, leaf) for node in self._mine]
        if self._world == 1:
            return sums[0]
        total = list(sums[0])
        for positions in _same_dtype(total):
            rows = [torch.cat([vector[p].reshape(-1) for p in positions]) for vector in sums]
            rows += [torch.zeros_like(rows[0])] * (self._most - len(rows))
            is_cut = self._world > 2 and len(rows[0]) >= CUT_FROM
            flat = self._in_pieces(rows) if is_cut else self._at_once(rows)
            parts = torch.split(flat, [total[p].numel() for p in positions])
            for p, part in zip(positions, parts, strict=True):
                total[p] = part.view_as(total[p])
        return total

    def _at_once(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """The sum [n] of all nodes' vectors; ``rows`` are this rank's, padded to ``most``."""
        mine = rows[0] if len(rows) == 1 else torch.cat(rows)
        everyone = mine.new_empty(self._world * mine.numel())
        self._all_gather(everyone, mine, group=self._group)
        return self._up_the_tree(everyone.view(self._world, self._most, -1))

    def _in_pieces(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """As ``_at_once``, and each rank adds up the piece of the vectors that is its own."""
        size = len(rows[0])
        piece = -(-size // self._world)
        mine = rows[0].new_zeros(self._world, self._most, piece)  # by whose piece it is
        for k, row in enumerate(rows):
            for r, part in enumerate(torch.split(row, piece)):
                mine[r, k, : len(part)] = part
        theirs = torch.empty_like(mine)  # by whose sums they are
        dist.all_to_all_single(theirs, mine, group=self._group)
        added = self._up_the_tree(theirs)
        everyone = added.new_empty(self._world * piece)
        self._all_gather(everyone, added.contiguous(), group=self._group)
        return everyone[:size]

    def _up_the_tree(self, sums: torch.Tensor) -> torch.Tensor:
        """[n] the sum of [world, most, n], each rank's nodes; used up."""
        known = {
            node: [sums[r, k]]
            for r, nodes in enumerate(self._nodes)
            for k, node in enumerate(nodes)
        }
        return tree_sum(self._root, known.get)[0]


def _same_dtype(vector: Vector) -> Iterator[list[int]]:
    """The positions of a vector's tensors, grouped by dtype."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in vector):
        yield [p for p, tensor in enumerate(vector) if tensor.dtype == dtype]
