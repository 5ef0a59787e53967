"""The stages cross_validate and search: many trainings over the workers, and what they tell."""

import json
from collections.abc import Sequence
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.runs import stages
from ddlflow.runs.check.search import too_late
from ddlflow.runs.events import OnTrial, ignore
from ddlflow.runs.finished import Stage
from ddlflow.runs.result_json import from_json
from ddlflow.runs.results import (
    TRIALS_TABLE,
    CrossValidationResult,
    PrepareResult,
    SearchResult,
)
from ddlflow.runs.session import Session
from ddlflow.runs.setup import settled
from ddlflow.spec import code
from ddlflow.store.store import Store, open_store
from ddlflow.sweep.choose.space import settings
from ddlflow.sweep.choose.table import TrialRow
from ddlflow.train.auto import resolve

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
    data = _repeats(session, prepared)
    depends_on = _depends_on(session, data, "cross_validate") | {
        "predictions": pipeline.cv.predictions
    }

    def work(folder: Store) -> CrossValidationResult:
        from ddlflow.runs.folds import train_folds  # PyTorch, which a cached stage needs not

        return train_folds(session, folder, data, train)

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
        from ddlflow.runs.search import Searching  # PyTorch, as above
        from ddlflow.runs.spread import places

        return Searching(session, folder, places(session, data, folder), data, tell).run()

    done = session.stage("search", depends_on, work, SearchResult, results=[TRIALS_TABLE])
    if done.cached:
        for row in table_of(done):
            tell(row)
    return done


def table_of(searched: Stage[SearchResult]) -> list[TrialRow]:
    """The table of a search's trials, by number."""
    rows = json.loads(open_store(searched.folder).read(TRIALS_TABLE))["trials"]
    return [from_json(TrialRow, row, f"{searched.folder}/{TRIALS_TABLE}") for row in rows]


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


def _depends_on(
    session: Session, data: Sequence[Stage[PrepareResult]], name: str
) -> dict[str, Any]:
    """What a sweep's results depend on."""
    pipeline = session.request.pipeline
    return {
        "version": VERSION[name],
        "data": [stage.value.digest for stage in data],
        "labels": pipeline.labels,
        "model": pipeline.model.model_dump(mode="json"),
        "train": pipeline.train.model_dump(mode="json", exclude={"checkpoint_every_s"}),
        "sweep": pipeline.sweep.model_dump(mode="json"),
        "code": code.fingerprint(session.request, of_sources=False),
        "device": "cuda" if session.num_gpus else "cpu",
    }
