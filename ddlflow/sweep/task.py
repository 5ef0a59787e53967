"""What an engine's worker does for a sweep: cut members into pieces, and train a piece.

Both are plain functions of small values, called on whatever worker is free. All that a piece made
stands in a folder of its own: a piece whose worker died goes on there from its last epoch, and one
that is done is not done again.
"""

import gc
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from ddlflow.data.manifest import Manifest
from ddlflow.data.storage import load_json, save_json
from ddlflow.spec.pipeline import Model, Train
from ddlflow.sweep.halving import Better, goes_on
from ddlflow.sweep.held_out import write_predictions
from ddlflow.sweep.member import FoldRows, Member, Prepared, Result, whole
from ddlflow.sweep.plan import Fuse, plan_stacks
from ddlflow.sweep.run import SAVE_EVERY_S, Piece, cut, start
from ddlflow.sweep.trained import Trained
from ddlflow.train import checkpoint
from ddlflow.train.training import standardisation_by

Json = dict[str, Any]
Device = Literal["cpu", "cuda"]
# The engine gives a task to four workers, one after the other, where they die of it. The last one
# only says so: a piece that kills its workers must not end the sweep.
TRIES = 3
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Where:
    """Where a sweep trains.

    Attributes:
        dataset: the folder of the manifest.
        code: the folder of the user's modules, or None.
        device: the kind of device.
        threads: of one piece.
    """

    dataset: str
    code: str | None
    device: Device
    threads: int


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
    members: tuple[Json, ...]
    fuse: Fuse
    at_least: int


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
    """

    where: Where
    folder: str
    number: int
    members: tuple[Json, ...]
    fused: bool
    why: str
    until: int | None = None
    dropped: tuple[str, ...] = ()
    predictions: bool = False
    alone: Asynchronous | None = None


def plain(member: Member) -> Json:
    """A member as JSON values."""
    return {
        "id": member.id,
        "model": member.model.model_dump(mode="json"),
        "train": member.train.model_dump(mode="json"),
        "fold": member.fold,
    }


def member_of(values: Json) -> Member:
    """The inverse of `plain`."""
    return Member(
        values["id"],
        _MODEL.validate_python(values["model"]),
        Train.model_validate(values["train"]),
        values["fold"],
    )


def cut_members(task: CutTask) -> list[Json]:
    """Cuts members into pieces; measured where they will be trained.

    Returns:
        Of each piece ``ids``, ``fused`` and ``why``.

    Raises:
        SpecError: see ``plan_stacks``.
    """
    torch.set_num_threads(task.where.threads)
    members = [member_of(values) for values in task.members]
    prepared = _prepared(task.where, members, 0)
    pieces = [
        piece
        for group in plan_stacks(members, prepared, fuse=task.fuse)
        for piece in cut(group, prepared, fuse=task.fuse, at_least=task.at_least)
    ]
    return [
        {"ids": [m.id for m in piece.members], "fused": piece.fused, "why": piece.why}
        for piece in pieces
    ]


def train_piece(task: PieceTask) -> list[Json]:
    """Trains a piece to its end, or to a rung; from where it stands, if it was begun.

    Returns:
        Of each member: ``id``, ``status`` (done, failed, pruned, or going), ``reason``,
        ``history``, ``best_epoch``, ``steps``, ``seconds`` and ``fused``.
    """
    folder = Path(task.folder)
    done = folder / ("end.json" if task.until is None else f"epoch-{task.until}.json")
    known = load_json(done)
    if known:
        return list(known["results"])
    folder.mkdir(parents=True, exist_ok=True)
    tried = _count(folder / f"{done.stem}.tries")
    if tried > TRIES:
        reason = f"Its worker died {TRIES} times while it was trained: out of memory?"
        results = [_failed(values["id"], reason) for values in task.members]
    else:
        results = _sound(_trained(task))
    save_json(done, {"results": results})
    (folder / f"{done.stem}.tries").unlink(missing_ok=True)
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


def _trained(task: PieceTask) -> list[Json]:
    torch.set_num_threads(task.where.threads)
    torch.set_flush_denormal(True)
    members = tuple(member_of(values) for values in task.members)
    prepared = _prepared(task.where, members, task.number)
    try:
        found = _to_rung(task, Piece(members, task.fused, task.why), prepared, Path(task.folder))
    except Exception as error:
        if len(members) == 1:
            log.warning("%s failed", members[0].id, exc_info=True)
            return [_failed(members[0].id, f"{type(error).__name__}: {error}")]
        # One of them spoils the others: out of memory together, or code of the user's that raises.
        log.warning("a stack failed; its members are trained apart", exc_info=True)
        return [result for member in members for result in _apart(task, member, prepared)]
    return found


def _apart(task: PieceTask, member: Member, prepared: Prepared) -> list[Json]:
    piece = Piece((member,), False, "its stack failed")
    try:
        return _to_rung(task, piece, prepared, Path(task.folder) / f"apart-{_slug(member.id)}")
    except Exception as error:
        log.warning("%s failed", member.id, exc_info=True)
        return [_failed(member.id, f"{type(error).__name__}: {error}")]


def _to_rung(task: PieceTask, piece: Piece, prepared: Prepared, folder: Path) -> list[Json]:
    """Trains from the last checkpoint to the rung, or to the end."""
    trained = start(piece, prepared)
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is not None:
        trained.restore(saved)
    trained.drop(set(task.dropped) & set(trained.alive), "it was not among the best of its rung")
    began = last_save = time.monotonic()
    while trained.alive and (task.until is None or trained.epoch < task.until):
        trained.run_epoch()
        if task.alone is not None:
            _decide(trained, task.alone)
        if time.monotonic() - last_save >= SAVE_EVERY_S:
            last_save = time.monotonic()
            checkpoint.write(folder / "checkpoints", trained.epoch, trained.snapshot())
    if trained.alive:  # at a rung: the next task goes on from here, perhaps elsewhere
        checkpoint.write(folder / "checkpoints", trained.epoch, trained.snapshot())
    if task.predictions and task.until is None:
        for member in piece.members:
            result = trained.results[member.id]
            if result.tensors is not None:
                write_predictions(member, result.tensors, prepared, folder)
    share_s = (time.monotonic() - began) / max(1, len(trained.alive))
    return [*map(_plain_result, trained.results.values()), *_going(trained, piece, share_s)]


def _going(trained: Trained, piece: Piece, seconds: float) -> Iterable[Json]:
    for id_ in trained.alive:
        history = trained.histories[id_]
        yield {
            "id": id_,
            "status": "going",
            "reason": "",
            "history": history,
            "best_epoch": 0,
            "steps": int(history[-1]["step"]) if history else 0,
            "seconds": seconds,
            "fused": len(piece.members) if piece.fused else 1,
        }


def _decide(trained: Trained, rule: Asynchronous) -> None:
    """At a rung, ends the trials that are not among the best of those that came before."""
    if trained.epoch not in rule.rungs[:-1]:
        return
    folder = Path(rule.folder) / str(trained.epoch)
    folder.mkdir(parents=True, exist_ok=True)
    for id_ in trained.alive:
        score = trained.histories[id_][-1][f"val_{rule.metric}"]
        mine = folder / f"{_slug(id_)}.json"
        earlier = [load_json(path) for path in folder.glob("*.json") if path != mine]
        save_json(mine, {"score": score})
        if not goes_on(score, [one["score"] for one in earlier if one], rule.factor, rule.better):
            trained.drop([id_], f"it was not among the best at epoch {trained.epoch}")


def _prepared(where: Where, members: Iterable[Member], number: int) -> Prepared:
    folder = Path(where.dataset)
    manifest = Manifest.load(folder)
    device = torch.device("cpu")
    if where.device == "cuda":
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    folds = {member.fold for member in members}
    return Prepared(
        folder=folder,
        manifest=manifest,
        folds={fold: _rows_of(folder, manifest, fold) for fold in folds},
        code=Path(where.code) if where.code else None,
        device=device,
    )


def _rows_of(folder: Path, manifest: Manifest, fold: int | None) -> FoldRows:
    if fold is None:
        return whole(folder, manifest)
    train, validation = manifest.shards_of_fold(fold)
    return FoldRows(
        train=tuple(folder / shard.path for shard in train),
        validation=tuple(folder / shard.path for shard in validation),
        standardisation=standardisation_by(manifest, manifest.fold_statistics(fold)),
    )


def _plain_result(result: Result) -> Json:
    values = result.to_plain()
    del values["tensors"]
    return values


def _sound(results: list[Json]) -> list[Json]:
    """A metric that is none (the AUROC of rows of one class) is null: JSON knows no NaN."""
    return [
        result
        | {
            "history": [
                {name: v if math.isfinite(v) else None for name, v in row.items()}
                for row in result["history"]
            ]
        }
        for result in results
    ]


def _failed(id_: str, reason: str) -> Json:
    return {
        "id": id_,
        "status": "failed",
        "reason": " ".join(reason.split())[:500],
        "history": [],
        "best_epoch": 0,
        "steps": 0,
        "seconds": 0.0,
        "fused": 1,
    }


def _count(path: Path) -> int:
    """One more, kept in a file before the work begins."""
    tried = 1
    with suppress(OSError, ValueError):
        tried += int(path.read_text())
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(tried))
    temporary.replace(path)
    return tried


def _slug(id_: str) -> str:
    return id_.replace("/", "-")
