"""How many ranks a training takes where the site leaves it open (``workers: auto``)."""

from dataclasses import dataclass

# A step's work is 6 floating-point operations a parameter and row (2 forward, 4 backward). Measured
# on 2 cores: two ranks of one host were 0.99 to 1.11 as fast as one at 101 MFLOP a step and 1.24 at
# 252; over gloo, as ranks of several hosts are, 0.82 and 1.14. So a rank is worth it from about 100
# MFLOP of its own on (benchmarks/ranks.py).
FLOP_A_PARAMETER_AND_ROW = 6
SHARE_FLOP = 100e6


@dataclass(frozen=True, slots=True)
class FittingWorld:
    """How many ranks, and a clause that says why."""

    world: int
    why: str


def fitting_world(*, cores: int, num_parameters: int, batch_rows: int) -> FittingWorld:
    """The number of CPU ranks of one thread that a training of this size is fastest with.

    Args:
        cores: that there are.
        num_parameters: of the model.
        batch_rows: of a global batch.
    """
    flop = FLOP_A_PARAMETER_AND_ROW * num_parameters * batch_rows
    world = max(1, min(cores, int(flop / SHARE_FLOP)))
    size = f"{flop / 1e6:,.0f} MFLOP a step"
    if world == cores:
        return FittingWorld(world, f"{size} keep {cores} cores busy")
    return FittingWorld(world, f"{size}: more ranks would wait for each other")
