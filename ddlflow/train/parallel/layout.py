"""Who computes what: ranks and virtual ranks as integers alone."""

from dataclasses import dataclass

from ddlflow.data.shards.order import num_sharing, virtual_ranks_of


@dataclass(frozen=True, slots=True)
class RankLayout:
    """One rank's place among the others.

    Virtual ranks are dealt in turn: in pass p over the ranks, rank r computes p * world + r.

    Attributes:
        rank: this one.
        world: how many there are.
        virtual_ranks: slices of a global batch, at least ``world``.
        is_elastic: whether each virtual rank's gradient is computed apart; else a rank's slices are
            computed as one.
    """

    rank: int = 0
    world: int = 1
    virtual_ranks: int = 1
    is_elastic: bool = True

    @property
    def mine(self) -> range:
        """The virtual ranks of this rank."""
        return virtual_ranks_of(self.rank, self.world, self.virtual_ranks)

    def sharing(self, batch_rows: int) -> int:
        """Of those whose gradients are added up, how many have a row of a global batch."""
        apart = self.virtual_ranks if self.is_elastic else self.world
        return num_sharing(batch_rows, self.virtual_ranks, apart)


ALONE = RankLayout()
