"""What a rank is told: one training, as small JSON values."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

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
        data: the pipeline's ``data`` section: the model keeps it, to read further sources alike.
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
    model: dict[str, Any]
    train: dict[str, Any]
    data: dict[str, Any]
    labels: ObjectiveName
    virtual_ranks: int
    threads: int
    device: Literal["cpu", "cuda"]
    code: str | None = None
    silence_s: float = 0.0
    attempt: str = "0"
    saved_step: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: JsonObject) -> "Job":
        return cls(**values)

    def here(self) -> "Job":
        """The job with its code as a folder of this host."""
        return replace(self, code=str(open_store(self.code).local_folder()) if self.code else None)

    @property
    def model_spec(self) -> Model:
        return _MODEL.validate_python(self.model)

    @property
    def train_spec(self) -> Training:
        return Training.model_validate(self.train)

    @property
    def checkpoints(self) -> Store:
        return open_store(self.folder).at("checkpoints")

    @property
    def ledgers(self) -> Store:
        return open_store(self.folder).at("ledger")

    @property
    def model_folder(self) -> Store:
        return open_store(self.folder).at("model")
