"""What an engine's worker does for a sweep first: cut its members into pieces."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ddlflow.sweep.fused.plan import Fuse, plan_stacks
from ddlflow.sweep.member import Member, Prepared, first_net
from ddlflow.sweep.place import PlainMember, Where, member_of, prepared_at
from ddlflow.sweep.run import Piece, cut
from ddlflow.sweep.task import reason_of


@dataclass(frozen=True, slots=True)
class CutTask:
    """Members to be cut into pieces.

    Attributes:
        where: they are trained.
        members: as `plain` gives them.
        fuse: the pipeline's ``sweep.fuse``.
        at_least: pieces to have if there are members for so many: the workers.
    """

    where: Where
    members: tuple[PlainMember, ...]
    fuse: Fuse
    at_least: int


@dataclass(frozen=True, slots=True)
class CutPiece:
    """A piece that members were cut into.

    Attributes:
        ids: of its members.
        fused: whether they are a stack; else there is one member.
        why: a clause that says why they are, or are not.
    """

    ids: tuple[str, ...]
    fused: bool
    why: str


def cut_members(task: CutTask) -> list[CutPiece]:
    """Cuts members into pieces; measured where they will be trained.

    A member whose model cannot be made gets a piece of its own: it will fail there, alone.

    Raises:
        SpecError: see ``plan_stacks``.
    """
    torch.set_num_threads(task.where.threads)
    members = [member_of(values) for values in task.members]
    prepared = prepared_at(task.where, members, 0)
    pieces: list[Piece] = []
    try:
        planned = plan_stacks(members, prepared, fuse=task.fuse)
    except Exception:
        pieces = list(_unmade(members, prepared))
        bad = {piece.members[0].id for piece in pieces}
        if not bad:
            raise
        sound = [member for member in members if member.id not in bad]
        planned = plan_stacks(sound, prepared, fuse=task.fuse)
    for group in planned:
        try:
            pieces += cut(group, prepared, fuse=task.fuse, at_least=task.at_least)
        except Exception as error:  # on rows enough for a batch, the user's code raises
            why = f"measuring their stack failed: {reason_of(error)}"
            pieces += [Piece((member,), False, why) for member in group.members]
    return [
        CutPiece(tuple(member.id for member in piece.members), piece.fused, piece.why)
        for piece in pieces
    ]


def _unmade(members: Iterable[Member], prepared: Prepared) -> Iterable[Piece]:
    """The members whose models cannot be made, each a piece."""
    known: dict[str, str] = {}
    for member in members:
        key = member.model.model_dump_json()
        if key not in known:
            known[key] = ""
            try:
                first_net(member.model, member.train, prepared)
            except Exception as error:
                known[key] = f"its model cannot be made: {reason_of(error)}"
        if known[key]:
            yield Piece((member,), False, known[key])
