"""What a rank is told: one training; to the rank it goes as small JSON values."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, Self

from pydantic import TypeAdapter

from ddlflow.rank_protocol import JsonObject
from ddlflow.spec.pipeline import Model, ObjectiveName, Training
from ddlflow.store.store import Store, open_store

_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


@dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Attributes:
        dataset: where the manifest lies; its ``train`` split is trained on.
        folder: the training's own place: ``checkpoints/`` and, at the end, ``model/``.
        model: the pipeline's ``model`` section.
        train: the pipeline's ``train`` section, with a number for every ``auto``.
        data: the pipeline's ``data`` section without secrets: the model keeps it as it is, to read
            further sources alike.
        labels: how labels are read.
        virtual_ranks: slices of a global batch, at least the world. With any determinism but
            elastic a rank computes its slices as one; it has several where ranks were lost.
        threads: of each rank.
        device: where to compute.
        code: where the user's modules lie, or None.
        attempt: the name of this attempt's ledgers; later ones sort behind.
        saved_step: of the last checkpoint that an earlier attempt of this command told of; 0: none.
        silence_s: how long a rank's work may stand still before it counts as hung; 0: for ever.
    """

    dataset: str
    folder: str
    model: Model
    train: Training
    data: JsonObject
    labels: ObjectiveName
    virtual_ranks: int
    threads: int
    device: Literal["cpu", "cuda"]
    code: str | None = None
    silence_s: float = 0.0
    attempt: str = "0"
    saved_step: int = 0

    def to_json(self) -> JsonObject:
        return {**asdict(self), "model": self.model_json, "train": self.train_json}

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        sections = {
            "model": _MODEL.validate_python(values["model"]),
            "train": Training.model_validate(values["train"]),
        }
        return cls(**{**values, **sections})

    def here(self) -> "Job":
        """The job with its code as a folder of this host."""
        return replace(self, code=str(open_store(self.code).local_folder()) if self.code else None)

    @property
    def model_json(self) -> JsonObject:
        return self.model.model_dump(mode="json")

    @property
    def train_json(self) -> JsonObject:
        return self.train.model_dump(mode="json")

    @property
    def settings(self) -> "TrainingSettings":
        train = {k: v for k, v in self.train_json.items() if k != "checkpoint_every_s"}
        return TrainingSettings(
            self.model_json, train, self.virtual_ranks, self.threads, self.device
        )

    @property
    def checkpoints(self) -> Store:
        return open_store(self.folder).at("checkpoints")

    @property
    def ledgers(self) -> Store:
        return open_store(self.folder).at("ledger")

    @property
    def model_folder(self) -> Store:
        return open_store(self.folder).at("model")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What decides the bits of a training: a checkpoint of other settings is not gone on from.

    Attributes:
        model: the pipeline's ``model`` section.
        train: the pipeline's ``train`` section, but for how often checkpoints are written.
        virtual_ranks: as in `Job`.
        threads: as in `Job`.
        device: as in `Job`.
    """

    model: JsonObject
    train: JsonObject
    virtual_ranks: int
    threads: int
    device: str

    def changed(self, before: "TrainingSettings") -> list[str]:
        """The names of what was otherwise before."""
        names = (one.name for one in fields(self))
        return [name for name in names if getattr(self, name) != getattr(before, name)]
