"""What a training tells while it runs, and how a rank says it to the driver."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ddlflow.rank_protocol import PROGRESS, RankSaid
from ddlflow.train.facts import Facts


@dataclass(frozen=True, slots=True)
class FactsFound:
    """What a rank is and where it runs, before the training begins."""

    facts: Facts


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


Event = FactsFound | Noted | Resumed | CheckpointSaved | Progressed | DigestMarked | EpochEnded
Tell = Callable[[Event], None]
_EPOCH, _FACTS = "epoch", "facts"
_KINDS: dict[str, type[Noted | Resumed | CheckpointSaved | Progressed | DigestMarked]] = {
    "note": Noted,
    "resumed": Resumed,
    "saved": CheckpointSaved,
    PROGRESS: Progressed,
    "digest": DigestMarked,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_said(event: Event) -> RankSaid:
    """An event as a rank says it."""
    if isinstance(event, EpochEnded):
        return RankSaid(_EPOCH, event.row)
    name = _FACTS if isinstance(event, FactsFound) else _NAMES[type(event)]
    return RankSaid(name, asdict(event))


def from_said(said: RankSaid) -> Event | None:
    """The event of what `to_said` gave; None of another module's words."""
    if said.name == _EPOCH:
        return EpochEnded(said.values)
    if said.name == _FACTS:
        return FactsFound(Facts(**said.values["facts"]))
    kind = _KINDS.get(said.name)
    return None if kind is None else kind(**said.values)
