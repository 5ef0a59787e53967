"""A cross-validation under way: the pipeline's setting trained on each fold, the rest scored."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import TrainingError
from ddlflow.runs import spread as pieces
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import CrossValidationResult, FoldResult, PrepareResult, ScoreSpread
from ddlflow.runs.session import Session
from ddlflow.spec.pipeline import Training
from ddlflow.store import documents
from ddlflow.store.store import Store
from ddlflow.sweep.choose.table import spread
from ddlflow.sweep.member import Member
from ddlflow.sweep.member_result import MemberResult
from ddlflow.train.tasks.table import BUILT_IN
from ddlflow.train.tasks.target import LabelTarget


def train_folds(
    session: Session, folder: Store, data: Sequence[Stage[PrepareResult]], train: Training
) -> CrossValidationResult:
    """Trains on each fold's training rows, and scores the rows held out.

    Args:
        session: whose pipeline has a ``cv`` section.
        folder: of the stage.
        data: the prepared data, a stage a repeat of the folds.
        train: the pipeline's section with numbers for ``auto``.

    Raises:
        TrainingError: a fold's training failed, with its reason.
    """
    pipeline = session.request.pipeline
    assert pipeline.cv is not None
    wants_rows = pipeline.cv.predictions
    where = pieces.places(session, data, folder)
    found: list[FoldResult] = []
    for repeat, (place, stage) in enumerate(zip(where, data, strict=True)):
        members = [
            Member(str(fold), pipeline.model, train, fold) for fold in range(stage.value.folds)
        ]
        cut = pieces.cut(session, folder.at(f"repeat-{repeat}"), place, members, pipeline.sweep)
        done = pieces.train(session, cut, lambda results: None, predictions=wants_rows)
        found += [_fold_of(repeat, done[member.id]) for member in members]
    for fold in found:
        if fold.status == "failed":
            pieces.forget_failed(folder)
            raise TrainingError(f"The training of fold {fold.fold} failed: {fold.reason}")
    predictions = _predictions(folder, data) if wants_rows else None
    return CrossValidationResult(tuple(found), _summary(found), predictions)


def _fold_of(repeat: int, result: MemberResult) -> FoldResult:
    row = result.counted_row
    return FoldResult(
        repeat=repeat,
        fold=int(result.id),
        status=result.status,
        reason=result.reason,
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        fused=result.fused,
        history=tuple(map(dict, result.history)),
        metrics={k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")},
    )


def _summary(folds: Sequence[FoldResult]) -> dict[str, ScoreSpread]:
    """By metric: mean, standard deviation and standard error over the folds."""
    found = {}
    for name in folds[0].metrics:
        known = [fold.metrics[name] for fold in folds]
        values = [math.nan if value is None else value for value in known]
        sound = all(map(math.isfinite, values))
        std, stderr = spread(values)
        mean = math.fsum(values) / len(values) if sound else None
        found[name] = ScoreSpread(mean, std, stderr)
    return found


def _predictions(folder: Store, data: Sequence[Stage[PrepareResult]]) -> str:
    """Gathers the folds' predictions in one place, a file a fold (and repeat); says where."""
    made = folder.at("predictions")
    for key in folder.list():
        path = PurePosixPath(key)
        if not (path.parts[0].startswith("repeat-") and path.match("predictions-*.parquet")):
            continue
        name = f"{path.parts[0]}-{path.name.removeprefix('predictions-')}"
        with made.writing(name) as temporary:
            if len(data) > 1:  # they are read as one table, in which folds of two repeats are two
                repeat = int(path.parts[0].removeprefix("repeat-"))
                _with_repeat(folder.local(key), temporary, repeat)
            else:
                shutil.copyfile(folder.local(key), temporary)
        folder.remove(key)
    files = [name for name in made.list() if name.endswith(".parquet")]
    label = Manifest.load(data[0].folder).label
    task = BUILT_IN[label.kind](label=LabelTarget(classes=label.classes))
    documents.save(made, "_SUCCESS", {"files": files, **task.described()}, indent=1)
    return made.location


def _with_repeat(path: Path, to: Path, repeat: int) -> None:
    """Puts the column ``repeat`` beside ``fold``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = pa.repeat(pa.scalar(repeat, pa.int32()), table.num_rows)
    pq.write_table(table.add_column(1, "repeat", column), to)
