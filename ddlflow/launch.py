"""A training as a gang on the session's engine: how many ranks, what they say, how they fail."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ddlflow.errors
from ddlflow.engines import Failure, GangJob, GangResult
from ddlflow.errors import EngineError, TrainingError
from ddlflow.session import Session
from ddlflow.spec.site import Engine
from ddlflow.storage import write_json
from ddlflow.train.job import Job
from ddlflow.train.world import fitting_world

Tell = Callable[[dict[str, Any]], None]
COME_BACK_S = 4.0  # a nanny starts a worker again in 1 to 3 s; waiting for it keeps the world
# Kinds of a failure after which no attempt is made, and those where a rank was lost and no code
# raised: that may happen again and again.
FINAL_KINDS = frozenset({"SpecError", "DataError", "TrainingError", "CheckpointError"})
LOSSES = frozenset({"Killed", "Exited", "WorkerLost", "Hung", "StartTimeout", "Stopped"})
MESSAGE_CHARACTERS = 300  # of a cause in a line; the whole of it stands in the rank's log
_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)


def plural(number: int, noun: str) -> str:
    """``2 ranks``, ``1 rank``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, slots=True)
class Setup:
    """How a training is spread.

    Attributes:
        world: ranks of the first attempt.
        most: ranks that a later attempt may have, where workers were added meanwhile.
        virtual_ranks: slices of a global batch, kept from the training's first start on.
        threads: of a rank, kept likewise.
    """

    world: int
    most: int
    virtual_ranks: int
    threads: int


def setup(session: Session, folder: Path, rows: int, num_parameters: int) -> Setup:
    """Decides how a training is spread.

    Args:
        session: whose site and pipeline say what is wanted.
        folder: of the training: virtual ranks and threads are kept there from its first start.
        rows: to train on.
        num_parameters: of the model.
    """
    found = session.resources
    spec = session.plan.pipeline.train
    batch_rows = min(spec.batch_rows, rows)
    world, why, most = found.world, found.why, found.world
    if world is None:
        size = {"num_parameters": num_parameters, "batch_rows": batch_rows}
        choice = fitting_world(cores=session.engine.slots, **size)
        world, why = choice.world, choice.why
        most = fitting_world(cores=batch_rows, **size).world
    kept = folder / "setup.json"
    if not kept.exists():
        virtual_ranks = spec.virtual_ranks
        if virtual_ranks == "auto":
            # In elastic mode a slice is what is in memory at once: more slices, smaller pieces.
            micro = spec.micro_batch_rows if spec.determinism == "elastic" else None
            virtual_ranks = max(world, -(-batch_rows // micro) if micro else 1)
        write_json(
            kept, {"virtual_ranks": min(virtual_ranks, batch_rows), "threads": found.threads}
        )
    known = json.loads(kept.read_text())
    virtual_ranks, threads = known["virtual_ranks"], known["threads"]
    world = min(world, virtual_ranks, session.engine.slots)
    words = [plural(world, "rank"), plural(threads, "thread")]
    if spec.determinism == "elastic":
        words.append(plural(virtual_ranks, "virtual rank"))
    else:
        words.append(f"determinism: {spec.determinism}")
    session.screen.say(f"train: {words[0]} x {words[1]}, {words[2]} ({why})")
    return Setup(world, min(most or world, virtual_ranks), virtual_ranks, threads)


def launch(session: Session, job: Job, spread: Setup, rows: int, tell: Tell) -> dict[str, Any]:
    """Runs a training to its end, over as many attempts as it takes and may have.

    When a rank dies, hangs or raises, the next attempt goes on from the last checkpoint with the
    workers that are there then. The result does not depend on any of that.

    Args:
        session: with the engine.
        job: what to train.
        spread: how many ranks are wanted.
        rows: of one epoch, for the progress bar.
        tell: gets each epoch's row of history, and an "attempt" event as each begins, and again,
            with ``ended_by``, when it ended before the training did.

    Returns:
        What rank 0 says at the end, and ``attempts``: each one's number, world, the step that it
        went on from (0: the start) and the first cause of its end, ``ended_by``.

    Raises:
        TrainingError: no attempt is left, or another one would end the same way.
        EngineError: too few workers are left, or the cluster is.
        Interrupted: a signal came; the checkpoint is written.
    """
    tell = _each_epoch_once(tell)
    most = session.plan.site.engine.max_restarts + 1
    attempts: list[dict[str, Any]] = []
    before: Failure | None = None
    with session.screen.bar("train", rows * job.train_spec.epochs, "rows") as show:
        while True:
            ranks = _ranks_left(session, spread) if attempts else spread.world
            attempt: dict[str, Any] = {"number": len(attempts) + 1, "world": ranks, "from_step": 0}
            attempts.append(attempt)
            tell({"event": "attempt", **attempt})
            result = _attempt(session, job, attempt, tell, show)
            if result.values is not None:
                return {**result.values[0], "attempts": attempts}
            failure = result.failure or _asked_to_stop(job, ranks)
            # The rank may have raised before it told of a step of this attempt.
            failure = replace(failure, step=max(failure.step or 0, attempt["from_step"]))
            attempt["ended_by"] = cause = describe(failure)
            tell({"event": "attempt", **attempt})
            session.screen.say(f"train: attempt {len(attempts)} ended: {cause}")
            if _is_final(failure) or _is_same(failure, before) or len(attempts) >= most:
                raise _error_of(failure, len(attempts), job)
            before = failure


def _attempt(
    session: Session, job: Job, attempt: dict[str, Any], tell: Tell, show: Callable[..., None]
) -> GangResult:
    """One gang's life; a cluster that loses a worker as it starts is a failure as any other."""
    named = replace(job, attempt=f"{time.time_ns():020d}")  # names sort as times do
    if job.train_spec.determinism != "elastic":
        named = replace(named, virtual_ranks=attempt["world"])
    gang_job = _gang_job(named, session.plan.site.engine)
    on_event = _listener(session, attempt, tell, show)
    try:
        return session.gang(gang_job, attempt["world"], on_event)
    except EngineError as error:
        if attempt["number"] == 1:
            raise
        name = session.engine.name
        failure = Failure(0, name, None, "EngineError", str(error), "", gang_job.log_folder)
        return GangResult(None, failure, stopped=False)


def _asked_to_stop(job: Job, world: int) -> Failure:
    """A rank was sent SIGTERM by someone else, as when its machine is emptied."""
    ranks = plural(world, "rank")
    message = f"one of {ranks} was asked to stop from outside (SIGTERM)"
    return Failure(0, "its worker", None, "Stopped", message, "", str(Path(job.folder) / "logs"))


def _gang_job(job: Job, site: Engine) -> GangJob:
    return GangJob(
        module="ddlflow.train.rank",
        payload=job.to_json(),
        threads=job.threads,
        log_folder=str(Path(job.folder) / "logs"),
        env={},
        python_path=(),
        start_timeout_s=site.start_timeout_s,
        silence_s=job.silence_s,
    )


def _listener(
    session: Session, attempt: dict[str, Any], tell: Tell, show: Callable[..., None]
) -> Tell:
    """What is done with the events of one attempt's ranks: rank 0 speaks for all."""

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            session.screen.say(f"train: {event['text']}")
        if event.get("rank") != 0:
            return
        if event["event"] == "progress":
            speed = event["done"] / max(event["seconds"], 1e-9) / 1e6
            words = f"epoch {event['epoch']}, loss {event['loss']:.4f}, {speed:.2f} M rows/s"
            show(event["done"], words)
        elif event["event"] == "resumed":
            attempt["from_step"] = event["step"]
            session.screen.say(f"train: goes on from step {event['step']}")
            # The driver or a worker may have been killed before a row of these was told.
            for row in event["history"]:
                tell({"event": "epoch", **row})
        elif event["event"] in {"epoch", "digest"}:
            tell(event)

    return on_event


def _each_epoch_once(tell: Tell) -> Tell:
    """An epoch that a later attempt does again, or goes on from, is not told again."""
    told: set[int] = set()

    def tell_once(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            if event["epoch"] in told:
                return
            told.add(event["epoch"])
        tell(event)

    return tell_once


def _ranks_left(session: Session, spread: Setup) -> int:
    """Ranks of the next attempt: of the workers that are there, or come back in a moment.

    Workers that were added meanwhile are used too.

    Raises:
        EngineError: fewer than ``engine.min_workers`` came in ``engine.start_timeout_s``.
    """
    site, engine = session.plan.site.engine, session.engine
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


def describe(failure: Failure) -> str:
    """One line: who, where, when, what."""
    after = f" after step {failure.step}" if failure.step else ""
    message = " ".join(failure.message.split())
    if len(message) > MESSAGE_CHARACTERS:
        message = f"{message[: MESSAGE_CHARACTERS - 3]}..."
    said = f"{failure.kind}: {message}" if message else failure.kind
    return f"rank {failure.rank} on {failure.host}{after}: {said}"


def _is_final(failure: Failure) -> bool:
    """Whether the error is of the input or of the numbers: another attempt would meet it again."""
    ours = f"{ddlflow.errors.__name__}.{failure.kind}"  # user code may have a DataError of its own
    return failure.kind in FINAL_KINDS and ours in failure.traceback


def _is_same(failure: Failure, before: Failure | None) -> bool:
    """Whether code raised the same at the same step twice: it would a third time too."""
    if before is None or failure.kind in LOSSES:
        return False
    return (failure.kind, failure.message, failure.step) == (
        before.kind,
        before.message,
        before.step,
    )


def _error_of(failure: Failure, attempts: int, job: Job) -> Exception:
    """The error that a user sees for the last attempt's first cause."""
    if _is_final(failure):
        kind: type[Exception] = getattr(ddlflow.errors, failure.kind)
        return kind(failure.message)
    if failure.kind == EngineError.__name__:
        return EngineError(failure.message)
    after = f" after {plural(attempts, 'attempt')}" if attempts > 1 else ""
    said = f"The training failed{after}: {describe(failure).rstrip('.')}"
    frames = [] if failure.kind in LOSSES else list(_FRAME.finditer(failure.traceback))
    own = [frame for frame in frames if _own_file(frame["file"], job)]
    if own:
        file = _own_file(own[-1]["file"], job)
        place, next_step = f"{file}:{own[-1]['line']} in {own[-1]['name']}", f"Correct {file}."
    else:
        place = f"{frames[-1]['file']}:{frames[-1]['line']}" if frames else ""
        next_step = "The same command goes on from the last checkpoint."
    at = f" ({place})" if place else ""
    error = TrainingError(f"{said}{at}. Log: {failure.log}. {next_step}")
    error.add_note(failure.traceback)
    return error


def _own_file(file: str, job: Job) -> str:
    """A file of the pipeline's own code as its author names it; empty for any other file."""
    folders = [Path(job.code), Path(job.code).resolve()] if job.code else []
    inside = [str(Path(file).relative_to(f)) for f in folders if Path(file).is_relative_to(f)]
    return inside[0] if inside else ""
