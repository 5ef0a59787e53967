"""A training as a gang on the session's engine: how many ranks, what they say, how they fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ddlflow.errors
from ddlflow.engines import Failure, GangJob
from ddlflow.errors import TrainingError
from ddlflow.session import Session, write_json
from ddlflow.train.job import Job
from ddlflow.train.world import fitting_world

Tell = Callable[[dict[str, Any]], None]


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
    """Runs a training to its end and returns what rank 0 says of it.

    Args:
        session: with the engine.
        job: what to train.
        world: how many ranks.
        rows: of one epoch, for the progress bar.
        tell: gets each epoch's row of history.

    Raises:
        TrainingError: a rank failed; the same job goes on from the last checkpoint.
        Interrupted: a signal came; the checkpoint is written.
    """
    gang_job = GangJob(
        module="ddlflow.train.rank",
        payload=job.to_json(),
        threads=job.threads,
        log_folder=str(Path(job.folder) / "logs"),
        env={},
        python_path=(),
        start_timeout_s=session.plan.site.engine.start_timeout_s,
    )
    with session.screen.bar("train", rows * job.train_spec.epochs, "rows") as advance:
        done = 0

        def on_event(event: dict[str, Any]) -> None:
            nonlocal done
            if event.get("rank") != 0:
                return
            if event["event"] == "progress":
                speed = event["done"] / max(event["seconds"], 1e-9) / 1e6
                words = f"epoch {event['epoch']}, loss {event['loss']:.4f}, {speed:.2f} M rows/s"
                advance(event["done"] - done, words)
                done = event["done"]
            elif event["event"] == "resumed":
                session.screen.say(f"train: goes on from step {event['step']}")
            elif event["event"] == "epoch":
                tell(event)

        result = session.gang(gang_job, world, on_event)
    if result.failure is not None:
        raise _error_of(result.failure)
    if result.values is None:
        raise TrainingError("The training was stopped from outside. Start the same command again.")
    return dict(result.values[0])


def _error_of(failure: Failure) -> Exception:
    """The error that a user sees for a gang's first cause."""
    if failure.kind in {"SpecError", "DataError", "TrainingError", "CheckpointError"}:
        kind: type[Exception] = getattr(ddlflow.errors, failure.kind)
        return kind(failure.message)
    at = f" at step {failure.step}" if failure.step else ""
    lines = [line.strip() for line in failure.traceback.splitlines() if line.strip()]
    place = next((line for line in reversed(lines) if line.startswith("File ")), "")
    error = TrainingError(
        f"Rank {failure.rank} on {failure.host} failed{at}: {failure.kind}: {failure.message} "
        f"{f'({place}). ' if place else ''}Log: {failure.log}. The same command goes on from the "
        "last checkpoint."
    )
    error.add_note(failure.traceback)
    return error
