"""What a training tells while it runs, and the JSON that a rank sends of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Noted:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """It goes on from a checkpoint of this step; ``history`` has a row an epoch that was done."""

    step: int
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint of this step is on the disk."""

    step: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """What moves a progress bar, at most twice a second.

    Attributes:
        step: steps done in all.
        done: rows trained on.
        total: of the rows of all epochs.
        seconds: of training, over all attempts.
        epoch: the one under way, from 1.
        loss: of the epoch so far, the mean over its items.
    """

    step: int
    done: int
    total: int
    seconds: float
    epoch: int
    loss: float


@dataclass(frozen=True, slots=True)
class DigestMarked:
    """An entry of the digest trail.

    Attributes:
        step: steps done in all.
        digest: of the weights after it.
        loss: of the epoch so far, the mean over its items.
    """

    step: int
    digest: str
    loss: float


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """A row of history: epoch, step, loss, lr, rows_per_s, and what validation gave."""

    row: Mapping[str, float]


Event = Noted | Resumed | CheckpointSaved | Progressed | DigestMarked | EpochEnded
Tell = Callable[[Event], None]
NAMES: dict[type, str] = {
    Noted: "note",
    Resumed: "resumed",
    CheckpointSaved: "saved",
    Progressed: "progress",
    DigestMarked: "digest",
}


KINDS = {name: kind for kind, name in NAMES.items()}
OF_A_GANG = {"event", "rank", "host"}  # what an engine adds to an event's values


def to_json(event: Event) -> dict[str, Any]:
    """An event as an engine passes it on: its name under ``event``, beside its values."""
    if isinstance(event, EpochEnded):
        return {"event": "epoch", **event.row}
    return {"event": NAMES[type(event)], **asdict(event)}


def from_json(values: Mapping[str, Any]) -> Event | None:
    """The event of what `to_json` gave; None of what a rank's process says of itself."""
    own = {name: value for name, value in values.items() if name not in OF_A_GANG}
    if values["event"] == "epoch":
        return EpochEnded(own)
    kind = KINDS.get(values["event"])
    found: Event | None = None if kind is None else kind(**own)
    return found
