"""Trains the members of a sweep in this process: fused where that is faster, else one by one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ddlflow.sweep.fused.feasible import made_inputs, program_of
from ddlflow.sweep.fused.plan import Fuse, MemberGroup
from ddlflow.sweep.fused.program import Program
from ddlflow.sweep.fused.size import choose
from ddlflow.sweep.fused.stack import Stack
from ddlflow.sweep.fused.streams import Pool
from ddlflow.sweep.member import Member, Prepared, task_of
from ddlflow.sweep.solo import Solo
from ddlflow.sweep.trained import Emit, Trained


@dataclass(frozen=True, slots=True)
class Piece:
    """Members that one process trains at a time.

    Attributes:
        members: of one group.
        fused: whether they are a stack; else there is one member.
        why: a clause that says why they are, or are not.
    """

    members: tuple[Member, ...]
    fused: bool
    why: str


def cut(
    group: MemberGroup, prepared: Prepared, *, fuse: Fuse = "auto", at_least: int = 1
) -> list[Piece]:
    """Cuts a group into the pieces that are fastest, by a short measurement on the device.

    Args:
        group: from ``plan_stacks``.
        prepared: the data set.
        fuse: always: also where fusing does not pay.
        at_least: pieces to have if there are members for so many: the processes that wait for one.
    """
    if group.apart is not None:
        return [Piece((member,), False, group.apart) for member in group.members]
    members = sorted(group.members, key=lambda m: (-1 if m.fold is None else m.fold, m.train.seed))
    choice = choose(members, prepared, always=fuse == "always")
    alone = f" and {choice.solo_s * 1e6:,.0f} us alone" if math.isfinite(choice.solo_s) else ""
    measured = f"a step of a member takes {choice.fused_s * 1e6:,.0f} us in a stack{alone}"
    if choice.size == 0:
        return [Piece((member,), False, measured) for member in members]
    count = max(-(-len(members) // choice.size), min(at_least, len(members)))
    edges = [len(members) * k // count for k in range(count + 1)]
    return [Piece(tuple(members[a:b]), True, measured) for a, b in pairwise(edges)]


def start(
    piece: Piece,
    prepared: Prepared,
    *,
    pool: Pool | None = None,
    emit: Emit = lambda event: None,
    must_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """The members of a piece at their first step, to be run epoch by epoch.

    Args:
        piece: from ``cut``.
        prepared: the data set.
        pool: the data set's rows, where the caller keeps one for many pieces.
        emit: see ``Stack``.
        must_stop: see ``Stack``.
    """
    members = piece.members
    if not piece.fused:
        return Solo(members[0], prepared, emit=emit, must_stop=must_stop)
    if pool is None:
        pool = Pool(prepared, {member.fold for member in members})
    task = task_of(members[0], prepared)
    manifest = prepared.manifest
    sizes = [category.size for category in manifest.categories]
    example = made_inputs(1, len(manifest.feature_names), sizes, prepared.device)

    def program(net: nn.Module) -> Program:
        return program_of(net, task, example, prepared.device)

    return Stack(members, prepared, pool, program, emit=emit, must_stop=must_stop)
