"""What is made of a gang's failure: whether to try again, and the words for the user."""

import re
from pathlib import Path

import ddlflow.errors
from ddlflow.engines import Failure
from ddlflow.errors import EngineError, TrainingError
from ddlflow.train.job import Job

# Kinds of a failure after which no attempt is made, and those where a rank was lost and no code
# raised: that may happen again and again.
FINAL_KINDS = frozenset({"SpecError", "DataError", "TrainingError", "CheckpointError"})
LOSSES = frozenset({"Killed", "Exited", "WorkerLost", "Hung", "StartTimeout", "Stopped"})
MESSAGE_CHARACTERS = 300  # of a cause in a line; the whole of it stands in the rank's log
_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)


def plural(number: int, noun: str) -> str:
    """``2 ranks``, ``1 rank``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe(failure: Failure) -> str:
    """One line: who, where, when, what."""
    after = f" after step {failure.step}" if failure.step else ""
    message = " ".join(failure.message.split())
    if len(message) > MESSAGE_CHARACTERS:
        message = f"{message[: MESSAGE_CHARACTERS - 3]}..."
    said = f"{failure.kind}: {message}" if message else failure.kind
    return f"rank {failure.rank} on {failure.host}{after}: {said}"


def is_final(failure: Failure) -> bool:
    """Whether the error is of the input or of the numbers: another attempt would meet it again."""
    ours = f"{ddlflow.errors.__name__}.{failure.kind}"  # user code may have a DataError of its own
    return failure.kind in FINAL_KINDS and ours in failure.traceback


def is_same(failure: Failure, before: Failure | None) -> bool:
    """Whether code raised the same at the same step twice: it would a third time too."""
    if before is None or failure.kind in LOSSES:
        return False
    return (failure.kind, failure.message, failure.step) == (
        before.kind,
        before.message,
        before.step,
    )


def error_of(failure: Failure, attempts: int, job: Job, clause: str = "") -> Exception:
    """The error that a user sees for the last attempt's first cause.

    Args:
        failure: that cause.
        attempts: how many there were.
        job: whose code the cause may lie in.
        clause: why there is no further one.
    """
    if is_final(failure):
        kind: type[Exception] = getattr(ddlflow.errors, failure.kind)
        return kind(failure.message)
    if failure.kind == EngineError.__name__:
        return EngineError(failure.message)
    after = f" after {plural(attempts, 'attempt')}{clause}" if attempts > 1 else ""
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
