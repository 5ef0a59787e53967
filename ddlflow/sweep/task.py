"""What an engine's worker does for a sweep: train a piece.

A plain function of small values, called on whatever worker is free. All that a piece made stands
in a folder of its own: a piece whose worker died goes on there from its last epoch, and one that
is done is not done again.
"""

import gc
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ddlflow.errors import CheckpointError, DataError, DdlflowError
from ddlflow.models.user import one_line
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store
from ddlflow.sweep.choose.halving import Better, goes_on
from ddlflow.sweep.held_out import write_predictions
from ddlflow.sweep.member import Prepared
from ddlflow.sweep.member_result import (
    MemberResult,
    from_json,
    known_rows,
    of_result,
    to_json,
    untrained,
)
from ddlflow.sweep.place import PlainMember, Where, member_of, prepared_at
from ddlflow.sweep.run import Piece, start
from ddlflow.sweep.trained import Trained
from ddlflow.train.saved import checkpoint

# The engine gives a task to four workers, one after the other, where they die of it. The last one
# only says so: a piece that kills its workers must not end the sweep.
TRIES = 3
STACK_TRIES = 2  # then its members are tried apart: one of them may do it, or all are too large
SAVE_EVERY_S = 5.0  # a shorter piece of work is done again faster than it is written
END = "end.json"  # what came of a piece's members
APART = "apart.json"  # in the folder of a stack that failed, and why
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asynchronous:
    """How a piece decides by itself which trials go on, by those that came before it.

    Attributes:
        folder: where each member leaves its score of each rung.
        rungs: epochs, rising; the last is the whole training.
        factor: of so many trials, one goes on.
        metric: of the search.
        better: which scores are.
    """

    folder: str
    rungs: tuple[int, ...]
    factor: int
    metric: str
    better: Better


@dataclass(frozen=True, slots=True)
class PieceTask:
    """A piece to train, to its end or to a rung.

    Attributes:
        where: it is trained.
        folder: of the piece.
        number: of the piece; the worker's GPU goes by it where it has several.
        members: as `plain` gives them.
        fused: whether they are a stack.
        why: a clause that says why they are, or are not.
        until: the epoch of the rung; None: to the end.
        dropped: ids of members that end now.
        predictions: whether the held-out rows' predictions are wanted.
        alone: how it decides who goes on, where it does so by itself.
        driver: names the process that waits for it, and each of its calls.
    """

    where: Where
    folder: str
    number: int
    members: tuple[PlainMember, ...]
    fused: bool
    why: str
    until: int | None = None
    dropped: tuple[str, ...] = ()
    predictions: bool = False
    alone: Asynchronous | None = None
    driver: str = ""


def train_piece(task: PieceTask) -> list[MemberResult]:
    """Trains a piece to its end, or to a rung; from where it stands, if it was begun.

    Raises:
        DdlflowError: the file of what came of it is damaged.
        CheckpointError: the storage is full: no fault of the members'.
        DataError: a shard is damaged or gone.
    """
    folder = open_store(task.folder)
    rung = END if task.until is None else f"epoch-{task.until}.json"
    # The rung's own first: a search that goes on decides by what it decided by before.
    for name in (rung, END):
        known = documents.load(folder, name)
        if known:
            return from_json(known, f"{task.folder}/{name}")
    apart = documents.load(folder, APART)
    if apart:
        return [untrained(member.id, apart["why"], "apart") for member in task.members]
    tries = f"{rung.removesuffix('.json')}.tries"
    allowed = TRIES if len(task.members) == 1 else STACK_TRIES
    if _count(folder, tries, task.driver) <= allowed:
        results = _trained(task)
    else:
        reason = f"Its worker died {allowed} times while it was trained: out of memory?"
        results = _all_failed(task, reason)
    if not any(result.status == "apart" for result in results):
        is_over = all(result.status != "going" for result in results)
        documents.save(folder, END if is_over else rung, to_json(results))
        if is_over:
            folder.at("checkpoints").remove_all()
    folder.remove(tries)
    _free()
    return results


def _free() -> None:
    """Frees what cycles hold, for the worker lives on.

    What was imported is looked through the first time only: that takes 0.15 s, as long as a small
    training.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()


def _trained(task: PieceTask) -> list[MemberResult]:
    torch.set_num_threads(task.where.threads)
    members = tuple(member_of(values) for values in task.members)
    prepared = prepared_at(task.where, members, task.number)
    torch.set_flush_denormal(task.fused)  # numbers too small to matter take many times as long
    try:
        return _to_rung(
            task, Piece(members, task.fused, task.why), prepared, open_store(task.folder)
        )
    except (CheckpointError, DataError):  # a full storage, a damaged shard: of no member's making
        raise
    except Exception as error:
        log.warning("%s failed", ", ".join(m.id for m in members), exc_info=True)
        return _all_failed(task, reason_of(error))
    finally:
        torch.set_flush_denormal(False)


def _all_failed(task: PieceTask, reason: str) -> list[MemberResult]:
    """One training has failed; of a stack one member may have spoilt the others.

    They may be out of memory together, or one of them has code of the user's that raises.
    """
    if len(task.members) == 1:
        return [untrained(task.members[0].id, reason)]
    documents.save(open_store(task.folder), APART, {"why": reason})
    return [untrained(member.id, reason, "apart") for member in task.members]


def _to_rung(
    task: PieceTask, piece: Piece, prepared: Prepared, folder: Store
) -> list[MemberResult]:
    """Trains from the last checkpoint to the rung, or to the end."""
    trained = start(piece, prepared)
    checkpoints = folder.at("checkpoints")
    saved = checkpoint.latest(checkpoints)
    if saved is not None:
        trained.restore(dict(saved))
    trained.drop(set(task.dropped) & set(trained.alive), "it was not among the best of its rung")
    last_save = time.monotonic()
    while trained.alive and (task.until is None or trained.epoch < task.until):
        trained.run_epoch()
        if task.alone is not None:
            _decide(trained, task.alone)
        if time.monotonic() - last_save >= SAVE_EVERY_S:
            last_save = time.monotonic()
            checkpoint.write(checkpoints, trained.epoch, trained.snapshot())
    going: list[MemberResult] = []
    if trained.alive:  # at a rung: the next task goes on from here, perhaps elsewhere
        checkpoint.write(checkpoints, trained.epoch, trained.snapshot())
        going = list(_going(trained, piece))
    if task.predictions and task.until is None:
        for member in piece.members:
            result = trained.results[member.id]
            if result.tensors is not None:
                write_predictions(member, result.tensors, prepared, folder)
    return [*map(of_result, trained.results.values()), *going]


def _going(trained: Trained, piece: Piece) -> Iterable[MemberResult]:
    for id_ in trained.alive:
        history = trained.histories[id_]
        yield MemberResult(
            id=id_,
            status="going",
            reason="",
            history=known_rows(history),
            best_epoch=0,
            steps=int(history[-1]["step"]) if history else 0,
            seconds=trained.seconds[id_],
            fused=len(piece.members) if piece.fused else 1,
        )


def _decide(trained: Trained, rule: Asynchronous) -> None:
    """At a rung, ends the trials that are not among the best of those that came before."""
    if trained.epoch not in rule.rungs[:-1]:
        return
    folder = open_store(rule.folder).at(str(trained.epoch))
    for id_ in trained.alive:
        value = trained.histories[id_][-1][f"val_{rule.metric}"]
        score = value if math.isfinite(value) else None
        mine = f"{_slug(id_)}.json"
        others = [documents.load(folder, name) for name in folder.list() if name != mine]
        earlier = [one["score"] for one in others if one and one["score"] is not None]
        documents.save(folder, mine, {"score": score})
        if not goes_on(score, earlier, rule.factor, rule.better):
            trained.drop([id_], f"it was not among the best at epoch {trained.epoch}")


def reason_of(error: Exception) -> str:
    """Ours are sentences; others' are told by their type, and their place in the user's code."""
    text = str(error) if isinstance(error, DdlflowError) else one_line(error)
    return " ".join(text.split())[:500]


def _count(folder: Store, key: str, driver: str) -> int:
    """How often one driver has had the work begun, kept in a file before it is.

    A worker that ended because its driver did says nothing against the piece.
    """
    known = documents.load(folder, key) or {}
    tried: int = 1 + (known["tried"] if known.get("driver") == driver else 0)
    documents.save(folder, key, {"driver": driver, "tried": tried})
    return tried


def _slug(id_: str) -> str:
    return id_.replace("/", "-")


def apart(task: PieceTask, id_: str) -> PieceTask:
    """One member of a stack that failed, as a piece of its own."""
    return replace(
        task,
        folder=f"{task.folder}/apart-{_slug(id_)}",
        members=tuple(member for member in task.members if member.id == id_),
        fused=False,
        why="its stack failed",
    )
