"""A training as a gang on the session's engine: how many ranks, what they say, how they fail."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ddlflow.errors
from ddlflow.engines import Failure, GangJob
from ddlflow.errors import EngineError, TrainingError
from ddlflow.session import Session, write_json
from ddlflow.spec.site import Engine
from ddlflow.train.job import Job
from ddlflow.train.world import fitting_world

Tell = Callable[[dict[str, Any]], None]
COME_BACK_S = 4.0  # a nanny starts a worker again in 1 to 3 s; waiting for it keeps the world
FINAL_KINDS = frozenset({"SpecError", "DataError", "TrainingError", "CheckpointError"})
LOSSES = frozenset({"Killed", "Exited", "WorkerLost", "Hung", "StartTimeout"})  # no code raised


def plural(number: int, noun: str) -> str:
    """``2 ranks``, ``1 rank``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def setup(session: Session, folder: Path, rows: int, num_parameters: int) -> tuple[int, int, int]:
    """Decides world, virtual ranks and threads of a training.

    Args:
        session: whose site and pipeline say what is wanted.
        folder: of the training: virtual ranks and threads are kept there from its first start.
        rows: to train on.
        num_parameters: of the model.
    """
    found = session.resources
    spec = session.plan.pipeline.train
    world, why = found.world, found.why
    if world is None:
        choice = fitting_world(
            cores=session.engine.slots,
            num_parameters=num_parameters,
            batch_rows=min(spec.batch_rows, rows),
        )
        world, why = choice.world, choice.why
    kept = folder / "setup.json"
    if kept.exists():
        setup = json.loads(kept.read_text())
    else:
        virtual_ranks = spec.virtual_ranks if spec.virtual_ranks != "auto" else world
        most = min(spec.batch_rows, rows)
        setup = {"virtual_ranks": min(virtual_ranks, most), "threads": found.threads}
        write_json(kept, setup)
    virtual_ranks, threads = setup["virtual_ranks"], setup["threads"]
    world = min(world, virtual_ranks, session.engine.slots)
    words = [
        plural(world, "rank"),
        plural(threads, "thread"),
        plural(virtual_ranks, "virtual rank"),
    ]
    session.screen.say(f"train: {words[0]} x {words[1]}, {words[2]} ({why})")
    return world, virtual_ranks, threads


def launch(session: Session, job: Job, world: int, rows: int, tell: Tell) -> dict[str, Any]:
    """Runs a training to its end, over as many attempts as it takes and may have.

    When a rank dies, hangs or raises, the next attempt goes on from the last checkpoint with the
    workers that are there then. The result does not depend on any of that.

    Args:
        session: with the engine.
        job: what to train.
        world: how many ranks are wanted.
        rows: of one epoch, for the progress bar.
        tell: gets each epoch's row of history, and an "attempt" event as each begins.

    Returns:
        What rank 0 says at the end, and ``attempts``: each one's world and first cause of its end.

    Raises:
        TrainingError: no attempt is left, or another one would end the same way.
        Interrupted: a signal came; the checkpoint is written.
    """
    site = session.plan.site.engine
    attempts: list[dict[str, Any]] = []
    before: Failure | None = None
    with session.screen.bar("train", rows * job.train_spec.epochs, "rows") as show:
        while True:
            ranks = world if not attempts else _ranks_left(session, world)
            attempt: dict[str, Any] = {"number": len(attempts) + 1, "world": ranks}
            attempts.append(attempt)
            tell({"event": "attempt", **attempt})
            result = session.gang(_gang_job(job, site), ranks, _listener(session, tell, show))
            if result.values is not None:
                return {**result.values[0], "attempts": attempts}
            failure = result.failure
            if failure is None:
                raise TrainingError("The training was stopped from outside. Start it again.")
            attempt["ended_by"] = cause = describe(failure)
            session.screen.say(f"train: attempt {len(attempts)} ended: {cause}")
            if _is_final(failure) or _is_same(failure, before) or len(attempts) > site.max_restarts:
                raise _error_of(failure, len(attempts))
            before = failure


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


def _listener(session: Session, tell: Tell, show: Callable[..., None]) -> Tell:
    """What is done with the events of one attempt's ranks: rank 0 speaks for all."""

    def on_event(event: dict[str, Any]) -> None:
        if event.get("rank") != 0:
            return
        if event["event"] == "progress":
            speed = event["done"] / max(event["seconds"], 1e-9) / 1e6
            words = f"epoch {event['epoch']}, loss {event['loss']:.4f}, {speed:.2f} M rows/s"
            show(event["done"], words)
        elif event["event"] == "resumed":
            session.screen.say(f"train: goes on from step {event['step']}")
        elif event["event"] in {"epoch", "digest"}:
            tell(event)

    return on_event


def _ranks_left(session: Session, world: int) -> int:
    """Ranks of the next attempt: of the workers that are there, or come back in a moment.

    Raises:
        EngineError: fewer than ``engine.min_workers`` came in ``engine.start_timeout_s``.
    """
    site, engine = session.plan.site.engine, session.engine
    began = time.monotonic()
    while (found := min(world, engine.available())) < world:
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
    at = f" at step {failure.step}" if failure.step else ""
    return f"rank {failure.rank} on {failure.host}{at}: {failure.kind}: {failure.message}"


def _is_final(failure: Failure) -> bool:
    """Whether the error is of the input or of the numbers: another attempt would meet it again."""
    return failure.kind in FINAL_KINDS


def _is_same(failure: Failure, before: Failure | None) -> bool:
    """Whether code raised the same at the same step twice: it would a third time too."""
    if before is None or failure.kind in LOSSES:
        return False
    return (failure.kind, failure.message, failure.step) == (
        before.kind,
        before.message,
        before.step,
    )


def _error_of(failure: Failure, attempts: int) -> Exception:
    """The error that a user sees for the last attempt's first cause."""
    if failure.kind in FINAL_KINDS:
        kind: type[Exception] = getattr(ddlflow.errors, failure.kind)
        return kind(failure.message)
    lines = [line.strip() for line in failure.traceback.splitlines() if line.strip()]
    place = next((line for line in reversed(lines) if line.startswith("File ")), "")
    after = f" after {plural(attempts, 'attempt')}" if attempts > 1 else ""
    error = TrainingError(
        f"The training failed{after}: {describe(failure)} {f'({place}). ' if place else ''}Log: "
        f"{failure.log}. The same command goes on from the last checkpoint."
    )
    error.add_note(failure.traceback)
    return error
