"""A sweep's members spread over the engine's workers: cut into pieces once, trained rung by rung.

What was found stands in the sweep's folder, piece by piece::

    GROUP/plan.json              which members make a piece
    GROUP/PIECE/end.json         what came of its members (epoch-3.json: of its first rung)
    GROUP/PIECE/checkpoints/     where it stands

So a sweep that was stopped goes on where it was: the same members in the same pieces, and what is
done is read and not trained again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddlflow.data.storage import load_json, save_json
from ddlflow.session import Session
from ddlflow.spec.search import Sweep
from ddlflow.sweep.member import Member
from ddlflow.sweep.task import (
    Asynchronous,
    CutTask,
    PieceTask,
    Where,
    cut_members,
    plain,
    train_piece,
)

Json = dict[str, Any]
OnResults = Callable[[list[Json]], None]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Members cut into pieces.

    Attributes:
        folder: of the group.
        tasks: each a piece.
    """

    folder: Path
    tasks: tuple[PieceTask, ...]

    @property
    def fused(self) -> int:
        """How many members train in stacks."""
        return sum(len(task.members) for task in self.tasks if task.fused)


def cut(
    session: Session, folder: Path, where: Where, members: Sequence[Member], sweep: Sweep
) -> Pieces:
    """Cuts members into pieces, or reads how they were cut.

    Args:
        session: with the engine that will train them.
        folder: of this group of members alone.
        where: they are trained.
        members: with unlike ids.
        sweep: the pipeline's section.

    Raises:
        SpecError: ``sweep.fuse`` is always, and a member has to be trained apart.
    """
    known = load_json(folder / "plan.json")
    if not known:
        task = CutTask(where, tuple(map(plain, members)), sweep.fuse, session.engine.slots)
        (pieces,) = session.engine.map(cut_members, [task])
        known = {"pieces": pieces}
        save_json(folder / "plan.json", known)
        for why in dict.fromkeys(p["why"] for p in pieces if not p["fused"]):
            number = sum(len(p["ids"]) for p in pieces if p["why"] == why)
            session.screen.say(f"sweep: {number} trainings apart: {why}")
    by_id = {member.id: plain(member) for member in members}
    tasks = [
        PieceTask(
            where=where,
            folder=str(folder / f"{number:05d}"),
            number=number,
            members=tuple(by_id[id_] for id_ in piece["ids"]),
            fused=piece["fused"],
            why=piece["why"],
        )
        for number, piece in enumerate(known["pieces"])
    ]
    return Pieces(folder, tuple(tasks))


def train(
    session: Session,
    pieces: Pieces,
    on_results: OnResults,
    *,
    until: int | None = None,
    dropped: frozenset[str] = frozenset(),
    predictions: bool = False,
    alone: Asynchronous | None = None,
    may_begin: Callable[[], bool] = lambda: True,
) -> dict[str, Json]:
    """Trains all pieces to their ends, or to a rung.

    Args:
        session: with the engine.
        pieces: from `cut`.
        on_results: is given the results of each piece, in the pieces' order.
        until: the epoch of the rung; None: to the end.
        dropped: ids of members that end now as pruned.
        predictions: whether held-out rows' predictions are wanted.
        alone: see ``PieceTask``.
        may_begin: asked before each piece is begun; pieces that may not are left out.

    Returns:
        What came of each member, by its id; see ``train_piece``.
    """
    tasks = [
        replace(
            task,
            until=until,
            dropped=tuple(m["id"] for m in task.members if m["id"] in dropped),
            predictions=predictions,
            alone=alone,
        )
        for task in pieces.tasks
    ]
    sizes = [len(task.members) for task in tasks]
    found: dict[str, Json] = {}

    def begun() -> Iterator[PieceTask]:
        for task in tasks:
            if not may_begin():
                return
            yield task

    with session.screen.bar("sweep", sum(sizes), "trainings") as show:
        done = 0

        def on_event(event: Json) -> None:
            nonlocal done
            done += sizes[event["item"]]
            show(done)

        for results in session.engine.map(train_piece, begun(), on_event=on_event):
            on_results(results)
            found |= {result["id"]: result for result in results}
    return found
