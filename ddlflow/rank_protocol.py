"""What a rank's process and the worker that started it say to each other, a JSON line each.

By standard input the rank is told a `RankStart` and, in a world above 1, a `StoreAddress`; then it
stays open, and its end tells the rank that its worker is dead. The rank says events by a pipe of
their own. An engine acts on those that have a class here; all others are between the rank's module
and the gang's caller, and are passed on as `RankSaid`. Standard output and error are only log.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

EVENTS_OPTION = "--events-fd"
PROGRESS = "progress"  # the one `RankSaid` that an engine looks into: at its ``step``

JsonObject = Mapping[str, Any]  # JSON values whose keys are for others to know


@dataclass(frozen=True, slots=True)
class RankStart:
    """The first line of a rank's standard input.

    Attributes:
        rank: its number.
        world: how many ranks there are.
        host: the address of its own that others reach it by.
        secret: of the gang.
        worker_pid: the worker's process.
        payload: of the job.
    """

    rank: int
    world: int
    host: str
    secret: str = field(repr=False)
    worker_pid: int
    payload: JsonObject


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The second line: where rank 0's store is, and how long to try."""

    store_host: str
    store_port: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class RankImporting:
    """Said for a rank that cannot be there yet: what it is forked from still imports."""


@dataclass(frozen=True, slots=True)
class RankStarted:
    """The rank is there.

    Attributes:
        pid: its process.
    """

    pid: int


@dataclass(frozen=True, slots=True)
class RankBeat:
    """A sign of life.

    Attributes:
        step: the last step done.
        idle_s: how long the rank's work has stood still.
        stuck: whether that is too long.
    """

    step: int
    idle_s: float
    stuck: bool


@dataclass(frozen=True, slots=True)
class StoreOpened:
    """Rank 0's store can be reached at this port."""

    port: int


@dataclass(frozen=True, slots=True)
class RankResult:
    """The rank is done; ``value`` is of JSON."""

    value: Any


@dataclass(frozen=True, slots=True)
class RankStopped:
    """The rank was asked to stop, and did."""


@dataclass(frozen=True, slots=True)
class RankError:
    """The rank's code raised.

    Attributes:
        kind: the exception's class.
        message: its words.
        traceback: may be empty.
    """

    kind: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class RankSaid:
    """What is between the rank's module and the gang's caller.

    Attributes:
        name: of the event.
        values: that belong to it.
    """

    name: str
    values: JsonObject


RankEvent = (
    RankImporting
    | RankStarted
    | RankBeat
    | StoreOpened
    | RankResult
    | RankStopped
    | RankError
    | RankSaid
)
_KINDS: dict[str, type[RankEvent]] = {
    "importing": RankImporting,
    "started": RankStarted,
    "beat": RankBeat,
    "store": StoreOpened,
    "result": RankResult,
    "stopped": RankStopped,
    "error": RankError,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def line_of(message: RankStart | StoreAddress) -> str:
    """A line for a rank's standard input, without its end."""
    return json.dumps(asdict(message))


def event_line(event: RankEvent) -> str:
    """A line for the pipe of events, without its end: the name is under ``event``."""
    if isinstance(event, RankSaid):
        return json.dumps({"event": event.name, **event.values})
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)})


def event_of(line: str) -> RankEvent:
    """The event of a line.

    Raises:
        ValueError: it is none.
    """
    values = json.loads(line)
    name = values.pop("event", None) if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise ValueError("no event has this name")
    kind = _KINDS.get(name)
    if kind is None:
        return RankSaid(name, values)
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"an event {name} has other values") from error
