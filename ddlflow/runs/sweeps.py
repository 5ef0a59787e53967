"""The stages cross_validate and search: many trainings over the workers, and what they tell."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import SpecError, TrainingError
from ddlflow.runs import spread as pieces
from ddlflow.runs import stages
from ddlflow.runs.check.search import too_late
from ddlflow.runs.events import OnTrial, ignore
from ddlflow.runs.finished import Stage
from ddlflow.runs.result_json import from_json
from ddlflow.runs.results import (
    CrossValidationResult,
    FoldResult,
    PrepareResult,
    ScoreSpread,
    SearchResult,
)
from ddlflow.runs.search import TABLE, Searching
from ddlflow.runs.session import Session
from ddlflow.runs.setup import settled, ship
from ddlflow.spec import code
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store
from ddlflow.sweep.choose.space import settings
from ddlflow.sweep.choose.table import TrialRow, spread
from ddlflow.sweep.member import Member
from ddlflow.sweep.place import Where
from ddlflow.train.auto import resolve
from ddlflow.train.tasks.table import BUILT_IN
from ddlflow.train.tasks.target import LabelTarget

Json = dict[str, Any]
VERSION = {"cross_validate": 6, "search": 5}


def cross_validate(
    session: Session, prepared: Stage[PrepareResult]
) -> Stage[CrossValidationResult]:
    """Trains the pipeline's setting on each fold's training rows, and scores the held-out ones.

    Args:
        session: whose pipeline has a ``cv`` section.
        prepared: of ``stages.prepare``; further repeats are prepared here.

    Raises:
        TrainingError: a fold's training failed, with its reason.
    """
    train = settled(session, prepared)
    pipeline = session.request.pipeline
    assert pipeline.cv is not None
    wants_rows = pipeline.cv.predictions
    data = _repeats(session, prepared)
    depends_on = _depends_on(session, data, "cross_validate") | {"predictions": wants_rows}

    def work(folder: Store) -> CrossValidationResult:
        where = _where(session, data, folder)
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
        predictions = _predictions(folder, prepared, len(data)) if wants_rows else None
        return CrossValidationResult(tuple(found), _summary(found), predictions)

    return session.stage("cross_validate", depends_on, work, CrossValidationResult)


def search(
    session: Session, prepared: Stage[PrepareResult], tell: OnTrial = ignore
) -> Stage[SearchResult]:
    """Trains with the settings that the search chooses, and finds the best.

    Args:
        session: whose pipeline has a ``search`` section.
        prepared: of ``stages.prepare``.
        tell: gets each trial's row of the table as it ends.

    Raises:
        TrainingError: no trial was trained to its end.
        SpecError: pruning begins after the last epoch.
    """
    train = settled(session, prepared)
    pipeline = session.request.pipeline
    spec = pipeline.search
    assert spec is not None
    for wrong in too_late(spec, train.epochs):
        raise SpecError(wrong)
    data = _repeats(session, prepared) if spec.cv else [prepared]
    # The order of the space decides which trial is which; a key's JSON is sorted.
    section = spec.model_dump(mode="json") | {"order": list(spec.space)}
    depends_on = _depends_on(session, data, "search") | {"search": section}

    def work(folder: Store) -> SearchResult:
        under_way = Searching(session, folder, _where(session, data, folder), data, tell)
        return under_way.run()

    done = session.stage("search", depends_on, work, SearchResult, results=[TABLE])
    if done.cached:
        for row in table_of(done):
            tell(row)
    return done


def table_of(searched: Stage[SearchResult]) -> list[TrialRow]:
    """The table of a search's trials, by number."""
    rows = json.loads(open_store(searched.folder).read(TABLE))["trials"]
    return [from_json(TrialRow, row, f"{searched.folder}/{TABLE}") for row in rows]


def use_best(session: Session, searched: Stage[SearchResult]) -> None:
    """The stages from here on have the best trial's settings; cv, search and sweep stay."""
    pipeline = session.request.pipeline
    with_best = settings(pipeline, searched.value.best.values)
    rows = searched.value.rows
    train = resolve(with_best.train, rows["train"], rows["validation"])
    session.use(with_best.model_copy(update={"search": pipeline.search, "train": train}))


def _repeats(session: Session, prepared: Stage[PrepareResult]) -> list[Stage[PrepareResult]]:
    cv = session.request.pipeline.cv
    assert cv is not None
    return [prepared, *(stages.prepare(session, repeat) for repeat in range(1, cv.repeats))]


def _depends_on(session: Session, data: Sequence[Stage[PrepareResult]], name: str) -> Json:
    """What a sweep's results depend on."""
    pipeline = session.request.pipeline
    return {
        "version": VERSION[name],
        "data": [stage.value.digest for stage in data],
        "labels": pipeline.labels,
        "model": pipeline.model.model_dump(mode="json"),
        "train": pipeline.train.model_dump(mode="json", exclude={"checkpoint_every_s"}),
        "sweep": pipeline.sweep.model_dump(mode="json"),
        "code": code.fingerprint(session.request),
        "device": "cuda" if session.num_gpus else "cpu",
    }


def _where(session: Session, data: Sequence[Stage[PrepareResult]], folder: Store) -> list[Where]:
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


def _fold_of(repeat: int, result: Json) -> FoldResult:
    row = pieces.counted_row(result)
    return FoldResult(
        repeat=repeat,
        fold=int(result["id"]),
        status=result["status"],
        reason=result["reason"],
        epochs=len(result["history"]),
        best_epoch=result["best_epoch"],
        seconds=result["seconds"],
        fused=result["fused"],
        history=tuple(result["history"]),
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


def _predictions(folder: Store, prepared: Stage[PrepareResult], repeats: int) -> str:
    """Gathers the folds' predictions in one place, a file a fold (and repeat); says where."""
    made = folder.at("predictions")
    for key in folder.list():
        path = PurePosixPath(key)
        if not (path.parts[0].startswith("repeat-") and path.match("predictions-*.parquet")):
            continue
        name = f"{path.parts[0]}-{path.name.removeprefix('predictions-')}"
        with made.writing(name) as temporary:
            if repeats > 1:  # they are read as one table, in which folds of two repeats are two
                repeat = int(path.parts[0].removeprefix("repeat-"))
                _with_repeat(folder.local(key), temporary, repeat)
            else:
                shutil.copyfile(folder.local(key), temporary)
        folder.remove(key)
    files = [name for name in made.list() if name.endswith(".parquet")]
    label = Manifest.load(prepared.folder).label
    task = BUILT_IN[label.kind](label=LabelTarget(classes=label.classes))
    documents.save(made, "_SUCCESS", {"files": files} | task.described(), indent=1)
    return made.location


def _with_repeat(path: Path, to: Path, repeat: int) -> None:
    """Puts the column ``repeat`` beside ``fold``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = pa.repeat(pa.scalar(repeat, pa.int32()), table.num_rows)
    pq.write_table(table.add_column(1, "repeat", column), to)
