"""A sweep's members spread over the engine's workers: cut into pieces once, trained rung by rung.

What was found stands in the sweep's folder, piece by piece::

    GROUP/plan.json              which members make a piece
    GROUP/PIECE/end.json         what came of its members (epoch-3.json: of its first rung)
    GROUP/PIECE/checkpoints/     where it stands

So a sweep that was stopped goes on where it was: the same members in the same pieces, and what is
done is read and not trained again.
"""

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddlflow.engines import ItemDone
from ddlflow.errors import DdlflowError, EngineError
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import PrepareResult
from ddlflow.runs.session import Session
from ddlflow.runs.setup import ship
from ddlflow.spec.search import Sweep
from ddlflow.store import documents
from ddlflow.store.store import Store
from ddlflow.sweep.cutting import CutPiece, CutTask, cut_members
from ddlflow.sweep.member import Member
from ddlflow.sweep.member_result import MemberResult, from_json
from ddlflow.sweep.place import Where, plain
from ddlflow.sweep.task import END, Asynchronous, PieceTask, apart, train_piece

PLAN = "plan.json"  # which members make a piece
OnResults = Callable[[list[MemberResult]], None]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Members cut into pieces.

    Attributes:
        folder: of the group.
        tasks: each a piece.
    """

    folder: Store
    tasks: tuple[PieceTask, ...]

    @property
    def fused(self) -> int:
        """How many members train in stacks."""
        return sum(len(task.members) for task in self.tasks if task.fused)


def places(session: Session, data: Sequence[Stage[PrepareResult]], folder: Store) -> list[Where]:
    """Where a sweep trains: a place a repeat of the folds, with the code that it takes."""
    shipped = ship(session.request, folder)
    return [
        Where(
            dataset=stage.folder,
            code=shipped,
            device="cuda" if session.num_gpus else "cpu",
            threads=session.resources.threads,
        )
        for stage in data
    ]


def cut(
    session: Session, folder: Store, where: Where, members: Sequence[Member], sweep: Sweep
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
    known = documents.load(folder, PLAN)
    if known:
        cut_into = _planned(known, f"{folder.location}/{PLAN}")
    else:
        task = CutTask(where, tuple(map(plain, members)), sweep.fuse, session.engine.slots)
        try:
            (cut_into,) = session.engine.map(cut_members, [task])
        except EngineError:
            # Trying the models ended its worker each time: the one that does so will fail alone.
            why = "the worker that measured them died"
            cut_into = [CutPiece((member.id,), False, why) for member in members]
        documents.save(folder, PLAN, {"pieces": [asdict(piece) for piece in cut_into]})
        for why in dict.fromkeys(piece.why for piece in cut_into if not piece.fused):
            number = sum(len(piece.ids) for piece in cut_into if piece.why == why)
            session.screen.say(f"sweep: {number} trainings apart: {why}")
    by_id = {member.id: plain(member) for member in members}
    tasks = [
        PieceTask(
            where=where,
            folder=folder.at(f"{number:05d}").location,
            number=number,
            members=tuple(by_id[id_] for id_ in piece.ids),
            fused=piece.fused,
            why=piece.why,
        )
        for number, piece in enumerate(cut_into)
    ]
    return Pieces(folder, tuple(tasks))


def _planned(values: Any, where: str) -> list[CutPiece]:
    """How members were cut, of the JSON values of its file.

    Raises:
        DdlflowError: they are of another form.
    """
    try:
        return [CutPiece(tuple(one["ids"]), one["fused"], one["why"]) for one in values["pieces"]]
    except (KeyError, TypeError) as error:
        raise DdlflowError(
            f"{where} is damaged ({error}). Remove it, or do the work again with --fresh."
        ) from None


def train(
    session: Session,
    pieces: Pieces,
    on_results: OnResults,
    *,
    until: int | None = None,
    dropped: frozenset[str] = frozenset(),
    predictions: bool = False,
    alone: Asynchronous | None = None,
    may_begin: Callable[[PieceTask], bool] = lambda task: True,
) -> dict[str, MemberResult]:
    """Trains all pieces to their ends, or to a rung.

    Args:
        session: with the engine.
        pieces: from `cut`.
        on_results: is given the results of each piece, in the pieces' order; those of a stack that
            failed as a whole come member by member, after the others.
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
            dropped=tuple(m.id for m in task.members if m.id in dropped),
            predictions=predictions,
            alone=alone,
            driver=uuid.uuid4().hex,
        )
        for task in pieces.tasks
    ]
    found: dict[str, MemberResult] = {}
    done = 0
    with session.screen.bar("sweep", sum(len(t.members) for t in tasks), "trainings") as show:

        def work(tasks: Sequence[PieceTask], may: Callable[[PieceTask], bool]) -> list[PieceTask]:
            """Trains pieces; the members of stacks that failed as a whole are returned."""
            begun: list[PieceTask] = []
            failed: list[PieceTask] = []

            def items() -> Iterator[PieceTask]:
                for task in filter(may, tasks):
                    begun.append(task)
                    yield task

            def on_event(event: ItemDone) -> None:
                nonlocal done
                done += len(begun[event.item].members)
                show(done)

            mapped = session.engine.map(train_piece, items(), on_event=on_event)
            for number, results in enumerate(mapped):
                left = [r.id for r in results if r.status == "apart"]
                failed += [apart(begun[number], id_) for id_ in left if id_ not in dropped]
                whole = [result for result in results if result.status != "apart"]
                found.update({result.id: result for result in whole})
                on_results(whole)
            return failed

        failed = work(tasks, may_begin)
        done -= len(failed)
        work(failed, lambda task: True)
    return found


def forget_failed(folder: Store) -> None:
    """What failed under a folder is trained again, by the next command."""
    for key in folder.list():
        if key.rpartition("/")[2] != END:
            continue
        ended = from_json(documents.load(folder, key), f"{folder.location}/{key}")
        if any(one.status == "failed" for one in ended):
            folder.remove(key)


def score_of(result: MemberResult, metric: str) -> float:
    """Of the epoch that counts; NaN where there is none."""
    value = result.counted_row.get(f"val_{metric}")
    return math.nan if value is None else float(value)


def curve_of(found: Sequence[MemberResult], metric: str) -> tuple[tuple[int, float], ...]:
    """After each epoch that all have: the mean over the folds."""
    curve = []
    for epoch, at in enumerate(zip(*(one.history for one in found), strict=False), 1):
        values = [row.get(f"val_{metric}") for row in at]
        known = [math.nan if value is None else value for value in values]
        curve.append((epoch, sum(known) / len(known)))
    return tuple(curve)
