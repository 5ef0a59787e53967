"""A training as a gang on the session's engine: how many ranks, what they say, how they fail."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ddlflow.engines import Failure, GangEvent, GangJob, GangResult, OnGangEvent
from ddlflow.errors import EngineError
from ddlflow.rank_protocol import RankSaid
from ddlflow.runs.events import OnTrainEvent, TrainEvent
from ddlflow.runs.failures import describe, error_of, is_final, is_same, plural
from ddlflow.runs.ranks import Gathering
from ddlflow.runs.results import TrainAttempt
from ddlflow.runs.session import Session
from ddlflow.runs.setup import Setup
from ddlflow.spec.site import EngineSection
from ddlflow.store.store import open_store
from ddlflow.train.events import (
    CheckpointSaved,
    DigestMarked,
    EpochEnded,
    FactsFound,
    Noted,
    Progressed,
    Resumed,
    from_said,
)
from ddlflow.train.job import Job
from ddlflow.train.rank import PRELOAD
from ddlflow.train.result import TrainingResult

COME_BACK_S = 4.0  # a nanny starts a worker again in 1 to 3 s; waiting for it keeps the world


@dataclass(frozen=True, slots=True)
class Launched:
    """How a training ended: what rank 0 said of it, and the attempts that it took."""

    result: TrainingResult
    attempts: tuple[TrainAttempt, ...]


class _RunningAttempt:
    """The attempt that is under way, as far as its ranks have told."""

    def __init__(self, number: int, world: int) -> None:
        self.now = TrainAttempt(number, world)

    def update(self, **changes: Any) -> TrainAttempt:
        self.now = replace(self.now, **changes)
        return self.now


def launch(
    session: Session, job: Job, spread: Setup, rows: int, on_train_event: OnTrainEvent
) -> Launched:
    """Runs a training to its end, over as many attempts as it takes and may have.

    When a rank dies, hangs or raises, the next attempt goes on from the last checkpoint with the
    workers that are there then. The result does not depend on any of that. What is limited
    (``engine.max_restarts``) is attempts in a row that leave no new checkpoint: a training of days
    may lose a worker every night.

    Args:
        session: with the engine.
        job: what to train.
        spread: how many ranks are wanted.
        rows: of one epoch, for the progress bar.
        on_train_event: gets each epoch as it ends, each entry of the digest trail, and each
            attempt: as it begins, and again when it ended before the training did.

    Raises:
        TrainingError: no attempt is left, or another one would end the same way.
        EngineError: too few workers are left, or the cluster is.
        Interrupted: a signal came; the checkpoint is written.
    """
    report = _each_epoch_once(on_train_event)
    most = session.request.site.engine.max_restarts
    attempts: list[_RunningAttempt] = []
    before: Failure | None = None
    highest = 0  # step of a checkpoint so far
    in_vain = 0  # attempts in a row without a higher one
    with session.screen.bar("train", rows * job.train.epochs, "rows") as show:
        while True:
            ranks = _ranks_left(session, spread) if attempts else spread.world
            attempt = _RunningAttempt(len(attempts) + 1, ranks)
            attempts.append(attempt)
            report(attempt.now)
            result = _attempt(session, job, attempt, report, show)
            if result.values is not None:
                return Launched(
                    TrainingResult.from_json(result.values[0]), tuple(one.now for one in attempts)
                )
            failure = result.failure or _asked_to_stop(_logs(session, job), ranks)
            # The rank may have raised before it spoke of a step of this attempt.
            failure = replace(failure, step=max(failure.step or 0, attempt.now.from_step))
            cause = describe(failure)
            ended = attempt.update(ended_by=cause)
            report(ended)
            session.screen.say(f"train: attempt {len(attempts)} ended: {cause}")
            newest = ended.saved_step or ended.from_step or job.saved_step
            job = replace(job, saved_step=newest)
            in_vain = 1 if newest > highest else in_vain + 1
            highest = max(highest, newest)
            if in_vain > most:
                clause = (
                    f", {plural(most, 'restart')} without a new checkpoint (engine.max_restarts)"
                )
                raise error_of(failure, len(attempts), job, clause)
            if is_final(failure) or is_same(failure, before):
                raise error_of(failure, len(attempts), job)
            before = failure


def _attempt(
    session: Session,
    job: Job,
    attempt: _RunningAttempt,
    report: OnTrainEvent,
    show: Callable[..., None],
) -> GangResult:
    """One gang's life; a cluster that loses a worker as it starts is a failure as any other."""
    named = replace(job, attempt=f"{time.time_ns():020d}")  # names sort as times do
    gang_job = _gang_job(named, session.request.site.engine, _logs(session, job))
    ranks = Gathering(
        open_store(job.folder),
        attempt.now.world,
        job.device,
        must_be_alike=job.train.determinism == "elastic",
        say=lambda text: session.screen.say(f"train: {text}"),
    )
    on_event = _listener(session, attempt, ranks, report, show)
    try:
        return session.gang(gang_job, attempt.now.world, on_event)
    except EngineError as error:
        if attempt.now.number == 1:
            raise
        name = session.engine.name
        failure = Failure(0, name, None, "EngineError", str(error), "", gang_job.log_folder)
        return GangResult(None, failure, stopped=False)


def _asked_to_stop(logs: str, world: int) -> Failure:
    """A rank was sent SIGTERM by someone else, as when its machine is emptied."""
    ranks = plural(world, "rank")
    message = f"one of {ranks} was asked to stop from outside (SIGTERM)"
    return Failure(0, "its worker", None, "Stopped", message, "", logs)


def _logs(session: Session, job: Job) -> str:
    """Where each worker writes what its ranks print: by the checkpoints, if it can."""
    inside = job.folder.removeprefix(f"{session.store.location}/")
    return str(session.storage / inside / "logs")


def _gang_job(job: Job, site: EngineSection, logs: str) -> GangJob:
    return GangJob(
        module="ddlflow.train.rank",
        payload=job.to_json(),
        threads=job.threads,
        log_folder=logs,
        env={},
        python_path=(),
        start_timeout_s=site.start_timeout_s,
        silence_s=job.silence_s,
        preload=PRELOAD,
    )


def _listener(
    session: Session,
    attempt: _RunningAttempt,
    ranks: Gathering,
    report: OnTrainEvent,
    show: Callable[..., None],
) -> OnGangEvent:
    """What is done with the events of one attempt's ranks: rank 0 speaks for all."""

    def on_event(heard: GangEvent) -> None:
        if not isinstance(heard.event, RankSaid):
            return
        event = from_said(heard.event)
        if isinstance(event, FactsFound):
            ranks.add(heard.rank, event.facts)
        if isinstance(event, Noted):
            session.screen.say(f"train: {event.text}")
        if heard.rank != 0:
            return
        match event:
            case Progressed():
                speed = event.done / max(event.seconds, 1e-9) / 1e6
                words = f"epoch {event.epoch}, loss {event.loss:.4f}, {speed:.2f} M rows/s"
                show(event.done, words)
            case CheckpointSaved():
                attempt.update(saved_step=event.step)
            case Resumed():
                attempt.update(from_step=event.step)
                session.screen.say(f"train: goes on from step {event.step}")
                # The driver or a worker may have been killed before a row of these was reported.
                for row in event.history:
                    report(EpochEnded(row))
            case EpochEnded() | DigestMarked():
                report(event)

    return on_event


def _each_epoch_once(on_train_event: OnTrainEvent) -> OnTrainEvent:
    """An epoch that a later attempt does again, or goes on from, is not reported again."""
    reported: set[int] = set()

    def report_once(event: TrainEvent) -> None:
        if isinstance(event, EpochEnded):
            epoch = int(event.row["epoch"])
            if epoch in reported:
                return
            reported.add(epoch)
        on_train_event(event)

    return report_once


def _ranks_left(session: Session, spread: Setup) -> int:
    """Ranks of the next attempt: of the workers that are there, or come back in a moment.

    Workers that were added meanwhile are used too.

    Raises:
        EngineError: fewer than ``engine.min_workers`` came in ``engine.start_timeout_s``.
    """
    site, engine = session.request.site.engine, session.engine
    began = time.monotonic()
    while (found := min(spread.most, engine.available())) < spread.world:
        waited_s = time.monotonic() - began
        if waited_s >= COME_BACK_S and found >= site.min_workers:
            break
        if waited_s >= site.start_timeout_s:
            raise EngineError(
                f"{plural(found, 'worker')} left, and engine.min_workers is {site.min_workers}. "
                "Start more workers, and then the same command goes on from the last checkpoint."
            )
        time.sleep(0.1)
    return found
