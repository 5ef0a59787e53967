"""What a model's ``model.json`` says: what made the model, and how its inputs are read.

It is known without PyTorch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import TypeAdapter

from ddlflow.data.columns import Columns
from ddlflow.rank_protocol import JsonObject
from ddlflow.spec.pipeline import Model, ObjectiveName, UserObjective

FORMAT = 3
SEAL = "sha256"
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
_OBJECTIVE: TypeAdapter[ObjectiveName | UserObjective] = TypeAdapter(ObjectiveName | UserObjective)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The content of ``model.json``, but for its format and seal.

    Attributes:
        ddlflow: the version that trained it.
        torch: likewise.
        model: the pipeline's ``model`` section.
        objective: of the training.
        labels: how labels are read.
        label_scale: the values of `ddlflow.models.label_scale.LabelScale`.
        columns: how a table's columns become inputs.
        data: the pipeline's ``data`` section without secrets.
        missing: by numeric column, the share of missing values in the rows trained on.
        data_digest: of the data set.
        model_digest: of the parameters.
        code_digest: of the user's modules beside it; empty where there are none.
        virtual_ranks: as in `ddlflow.train.job.Job`.
        threads: likewise.
    """

    ddlflow: str
    torch: str
    model: Model
    objective: ObjectiveName | UserObjective
    labels: ObjectiveName
    label_scale: Mapping[str, float]
    columns: Columns
    data: JsonObject
    missing: Mapping[str, float]
    data_digest: str
    model_digest: str
    code_digest: str
    virtual_ranks: int
    threads: int

    def to_json(self) -> JsonObject:
        """Plain values."""
        return {
            "format": FORMAT,
            "ddlflow": self.ddlflow,
            "torch": self.torch,
            "model": self.model.model_dump(mode="json"),
            "objective": _OBJECTIVE.dump_python(self.objective, mode="json"),
            "labels": self.labels,
            "label_scale": self.label_scale,
            "columns": self.columns.to_json(),
            "data": self.data,
            "missing": self.missing,
            "data_digest": self.data_digest,
            "model_digest": self.model_digest,
            "code_digest": self.code_digest,
            "virtual_ranks": self.virtual_ranks,
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """The inverse of ``to_json``, of values of this format.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: they are damaged.
        """
        return cls(
            ddlflow=values["ddlflow"],
            torch=values["torch"],
            model=_MODEL.validate_python(values["model"]),
            objective=_OBJECTIVE.validate_python(values["objective"]),
            labels=values["labels"],
            label_scale=values["label_scale"],
            columns=Columns.from_json(values["columns"]),
            data=values["data"],
            missing=values["missing"],
            data_digest=values["data_digest"],
            model_digest=values["model_digest"],
            code_digest=values.get("code_digest", ""),
            virtual_ranks=values["virtual_ranks"],
            threads=values["threads"],
        )


def sealed(described: JsonObject, weights: str) -> str:
    """What tells a model's description, and weights of this SHA-256, from damaged ones."""
    known = json.loads(json.dumps({k: v for k, v in described.items() if k != SEAL}))
    return hashlib.sha256(f"{json.dumps(known, sort_keys=True)}\0{weights}".encode()).hexdigest()
