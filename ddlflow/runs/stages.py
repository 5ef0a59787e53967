"""The stages as plain functions: each composes data, train, infer and report over a session.

A stage takes the session and the stages before it, and returns a small manifest (`Stage`). A flow
runs them in turn; so can a script.
"""

from dataclasses import replace
from typing import Literal

from ddlflow.errors import DataError, SpecError
from ddlflow.redact import redacted, redacted_values
from ddlflow.runs.evaluated import SCORES, save_coefficients, save_scores
from ddlflow.runs.events import OnTrainEvent, ignore
from ddlflow.runs.exports import located
from ddlflow.runs.finished import Stage, hashed
from ddlflow.runs.inference import infer as infer  # noqa: PLC0414 - a stage as these
from ddlflow.runs.launch import launch
from ddlflow.runs.results import EvaluateResult, PrepareResult, TrainResult
from ddlflow.runs.session import Session
from ddlflow.runs.setup import settled, setup, ship
from ddlflow.runs.versions import VERSION
from ddlflow.spec import code
from ddlflow.store.store import Store
from ddlflow.train.events import EpochEnded

# What of the data section decides the shards alone, and so the digest of the prepared data.
SHARDS_ALONE = {"source", "test_source", "split", "seed"}


def prepare(session: Session, repeat: int = 0) -> Stage[PrepareResult]:
    """Sources -> shards and their manifest, the training rows dealt to folds if ``cv`` says so.

    Args:
        session: with the engine to prepare on.
        repeat: of repeated folds, which: each is a data set of its own.

    Raises:
        DataError: what the pipeline does not allow; nothing is left behind.
    """
    from ddlflow.data.prepare.prepare import open_sources
    from ddlflow.data.prepare.prepare import prepare as prepare_data

    pipeline = session.request.pipeline
    spec = located(session)
    location = str(spec.source)
    sources, _ = open_sources(spec, pipeline.labels, session.data_root, pipeline.cv)
    settings = {
        "version": VERSION["prepare"],
        "data": redacted_values(spec.model_dump(mode="json")),  # a signature may change
        "labels": pipeline.labels,
        # A location is relative to the data root, of which a storage may serve several.
        "sources": [[redacted(found.address), found.fingerprint] for found in sources],
    }
    cv = pipeline.cv.of_repeat(repeat) if pipeline.cv is not None else None
    if cv is not None:
        settings["cv"] = cv.fold_settings(pipeline.labels)

    def work(folder: Store) -> PrepareResult:
        session.warm_ranks()
        manifest = prepare_data(
            spec,
            pipeline.labels,
            data_root=session.data_root,
            folder=folder,
            map=session.map_over,
            cv=cv,
            converted=session.store.at("converted"),
            fresh=session.fresh,
        )
        rows = {split: manifest.rows(split) for split in ("train", "validation", "test")}
        if not rows["train"]:
            raise DataError(f"{location}: no row is left to train on. Look at data.split.")
        if rows["train"] < 2:
            raise DataError(f"{location}: one row alone cannot be trained on.")
        return PrepareResult(
            rows=rows,
            folds=manifest.num_folds,
            digest=manifest.digest,
            features=len(manifest.feature_names),
            categories=len(manifest.categories),
            classes=tuple(str(c) for c in manifest.label.classes),
            dropped=manifest.dropped,
            replaced=manifest.replaced,
            warnings=tuple(manifest.warnings),
            location=redacted(location),
            tensors=tuple(field.shown for field in manifest.tensors),
        )

    done = session.stage("prepare", settings, work, PrepareResult, results=["manifest.json"])
    for warning in done.value.warnings:
        session.screen.say(f"note: {warning}")
    settled(session, done)
    return done


def train(
    session: Session,
    prepared: Stage[PrepareResult],
    tell: OnTrainEvent = ignore,
    *,
    again: str | None = None,
) -> Stage[TrainResult]:
    """Trains the model on the prepared rows, from the last checkpoint if there is one.

    Args:
        session: with the engine to train on.
        prepared: of `prepare`.
        tell: gets each epoch's row of history, also of epochs trained before, each attempt, and
            each entry of the digest trail.
        again: a run's id: trains once more for it, in a folder of its own and from the start.

    Raises:
        TrainingError: a rank failed; the same command goes on from the last checkpoint.
    """
    from ddlflow.infer.notes import kept_notes

    spec = settled(session, prepared)
    request = session.request
    pipeline = request.pipeline
    rows = prepared.value.rows
    _check_train(session, rows)
    device: Literal["cpu", "cuda"] = "cuda" if session.num_gpus else "cpu"
    settings = {
        "version": VERSION["train"],
        "data": prepared.value.digest,
        # The model reads later sources as this one was read.
        "reading": pipeline.data.model_dump(mode="json", exclude=SHARDS_ALONE),
        "labels": pipeline.labels,
        "model": pipeline.model.model_dump(mode="json"),
        "train": spec.model_dump(mode="json", exclude={"checkpoint_every_s"}),
        "code": code.fingerprint(request, of_sources=False),
        "device": device,
    }

    def work(folder: Store) -> TrainResult:
        # Here: a model that stands needs no PyTorch.
        from ddlflow.runs.ranks import ranks_of_attempts
        from ddlflow.train.first_net import num_parameters
        from ddlflow.train.job import Job

        job = Job(
            dataset=prepared.folder,
            folder=folder.location,
            model=pipeline.model,
            train=spec,
            data=redacted_values(pipeline.data.model_dump(mode="json")),
            labels=pipeline.labels,
            virtual_ranks=1,
            threads=1,
            device=device,
            code=ship(request, folder),
            silence_s=request.site.engine.silence_s,
        )
        spread = setup(session, spec, folder, rows["train"], num_parameters(job))
        job = replace(job, virtual_ranks=spread.virtual_ranks, threads=spread.threads)
        session.import_ahead()
        trained = launch(session, job, spread, rows["train"], tell)
        result = trained.result.to_json()
        return TrainResult(
            **{key: value for key, value in result.items() if key != "trail"},
            attempts=trained.attempts,
            ranks=tuple(ranks_of_attempts(folder)),
            model=job.model_folder.location,
            world=spread.world,
            virtual_ranks=spread.virtual_ranks,
            threads=spread.threads,
            device=device,
        )

    if again is not None:
        settings["run"] = again
        return session.stage("reproduce", settings, work, TrainResult, fresh=True)
    done = session.stage("train", settings, work, TrainResult, results=["model/**/*"])
    if done.cached:
        for row in done.value.history:
            tell(EpochEnded(row))
    for note in kept_notes(done.value.history, done.value.best_epoch):
        session.screen.say(f"note: {note}")
    return done


def _check_train(session: Session, rows: dict[str, int]) -> None:
    """What has to hold between the pipeline and the prepared rows."""
    spec = session.request.pipeline.train
    if spec.early_stopping is not None and not rows["validation"]:
        raise SpecError(
            "train.early_stopping needs validation rows, and data.split leaves none. Set "
            "data.split.validation."
        )


def evaluate(
    session: Session, prepared: Stage[PrepareResult], trained: Stage[TrainResult]
) -> Stage[EvaluateResult]:
    """Scores the model on the test split, or on the validation split where there is no test."""
    from ddlflow.data.shards.manifest import SplitName
    from ddlflow.infer.notes import notes
    from ddlflow.train.tasks.measures import measures_of

    pipeline, spec = session.request.pipeline, session.request.pipeline.train
    rows = prepared.value.rows
    order: tuple[SplitName, ...] = ("test", "validation", "train")
    split = next(name for name in order if rows[name])
    settings = {
        "version": VERSION["evaluate"],
        "data": prepared.value.digest,
        "model": trained.value.model_digest,
        "trained": trained.key,
        "split": split,
        "histogram": pipeline.report.histogram,
    }

    def work(folder: Store) -> EvaluateResult:
        # Here: scores that stand need no PyTorch.
        from ddlflow.infer.coefficients import coefficients, has_coefficients
        from ddlflow.infer.evaluate import evaluate as score

        where = trained.value.model, prepared.folder
        threads, map_over = session.resources.threads, session.map_over
        feature = pipeline.report.histogram
        scored = score(
            *where, split, spec=spec, feature=feature, threads=threads, map_over=map_over
        )
        save_scores(folder, scored)
        if has_coefficients(pipeline.model, of_tensors=bool(prepared.value.tensors)):
            table = coefficients(*where, spec=spec, threads=threads, map_over=map_over)
            save_coefficients(folder, table)
        said = notes(measures_of(pipeline.labels), spec, split, scored)
        return EvaluateResult(
            split=split,
            metrics=dict(scored.metrics),
            baseline=dict(scored.baseline),
            predicted_classes=scored.predicted_classes,
            notes=tuple(said),
        )

    evaluated = session.stage("evaluate", settings, work, EvaluateResult, results=[SCORES])
    for note in evaluated.value.notes:
        session.screen.say(f"note: {note}")
    return evaluated


def key_of(session: Session, prepared: Stage[PrepareResult]) -> str:
    """What tells one pipeline's runs from another's: an unfinished one is gone on with."""
    request = session.request
    settings = redacted_values(request.pipeline.model_dump(mode="json"))
    return hashed([settings, code.fingerprint(request), prepared.key])
