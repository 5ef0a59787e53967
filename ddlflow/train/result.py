"""What a training gives at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from ddlflow.rank_protocol import JsonObject
from ddlflow.train.events import DigestMarked


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Of rank 0; it is kept beside the model as ``train.json``.

    Attributes:
        model_digest: of the weights that were kept.
        epochs: done.
        best_epoch: whose weights were kept: with early stopping the best one, else the last.
        steps: done.
        rows: trained on.
        rows_mark: the mark of all of them (``data.shards.batches.mark``): what each epoch's is.
        seconds: over all attempts.
        metrics: of the validation rows after the kept epoch.
        history: a row an epoch.
        trail: the digest trail.
        worlds: how many ranks the attempts had; each number once.
    """

    model_digest: str
    epochs: int
    best_epoch: int
    steps: int
    rows: int
    rows_mark: int
    seconds: float
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    trail: Sequence[DigestMarked]
    worlds: Sequence[int]

    def to_json(self) -> JsonObject:
        """Plain values by these names."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """What `to_json` gave."""
        trail = [DigestMarked(**entry) for entry in values["trail"]]
        return cls(**{**values, "trail": trail})
