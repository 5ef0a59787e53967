"""Every error that ddlflow raises on purpose.

    DdlflowError                 exit 1 on the command line
    +-- InputError               what the user gave is wrong, nothing was written; exit 2
    |   +-- SpecError            a pipeline or site file, an argument, user code
    |   +-- DataError            a source that cannot be read, or holds what it may not hold
    +-- EngineError              the cluster: unreachable, too few slots, a lost worker
    +-- TrainingError            a rank died, hung or raised; a loss that is not finite
    +-- CheckpointError          a checkpoint that cannot be written, read or trusted
    +-- TrackingError            MLflow refused what it was asked for

A message is one or more full sentences: what was given, where, what is allowed, what to do next.
It holds no secret of a URL that it names. A user sees that text alone; ``--debug`` adds the
traceback.
"""

from ddlflow.redact import redacted_text


class DdlflowError(Exception):
    """The root: anything ddlflow raises on purpose. Ends the command with status 1."""

    exit_status = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted_text(one) if isinstance(one, str) else one for one in args))


class InputError(DdlflowError):
    """The input was wrong and nothing was written. Ends the command with status 2."""

    exit_status = 2


class SpecError(InputError):
    """A pipeline file, a site file, an argument or user code that cannot be used."""


class DataError(InputError):
    """A source that cannot be read, or whose values the pipeline does not allow."""


class EngineError(DdlflowError):
    """The cluster failed: unreachable, too few slots, or a worker that was lost."""


class TrainingError(DdlflowError):
    """A training ended without a model: a rank died, hung or raised, or the loss is not finite."""


class CheckpointError(DdlflowError):
    """A checkpoint that cannot be written, read or trusted."""


class TrackingError(DdlflowError):
    """The tracking server refused a request (an outage is no error: it is waited out)."""
