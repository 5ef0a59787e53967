"""What a run's spool holds, a JSON object a record: its kind under ``op``, its time under ``t``.

A spool may be sent by another version of ddlflow than wrote it: what an earlier one did not write
has a default, and a record that is not known here is an `UnknownRecord`, which MLflow never gets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class RunBegan:
    """The first record.

    Attributes:
        t: milliseconds since 1970, as in all records.
        id: ours: MLflow's is not known yet.
        uri: of the store, without secrets.
        experiment: its name.
        name: of the run.
        tags: set when the run is created.
        parent: either id of the run that this one is a trial of.
        resume: either id of the run that goes on.
    """

    t: int
    id: str
    uri: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    parent: str | None = None
    resume: str | None = None


@dataclass(frozen=True, slots=True)
class RunResumed:
    """The run goes on."""

    t: int


@dataclass(frozen=True, slots=True)
class ParamsLogged:
    """Settings by flat name."""

    t: int
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TagsLogged:
    """Tags by name."""

    t: int
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MetricsLogged:
    """Metrics of one step, by name."""

    t: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TextLogged:
    """A text artifact at a path of the run's artifacts."""

    t: int
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class FileLogged:
    """A file, or a folder's contents, for a folder of the run's artifacts; None: their top."""

    t: int
    path: str
    folder: str | None


@dataclass(frozen=True, slots=True)
class DatasetLogged:
    """A data set that the run read; see ``Run.log_dataset``."""

    t: int
    name: str
    digest: str
    source: str
    schema: Mapping[str, str]
    profile: Mapping[str, Any]
    context: str


@dataclass(frozen=True, slots=True)
class ModelLogged:
    """A model; see ``log_model``.

    Attributes:
        t: as in all records.
        folder: of the model.
        name: within the run.
        signature: as MLflow's ``ModelSignature.to_dict`` has it; None: neither it nor an example.
        example: as pandas' ``to_json(orient="split")`` has it.
        dtypes: of the example's columns.
        requirements: what serving needs.
        register_as: the registered model that it is a version of.
        tags: of the model and its version.
        wheel: this ddlflow; spools of earlier versions have none.
    """

    t: int
    folder: str
    name: str
    signature: Mapping[str, Any] | None
    example: Mapping[str, Any] | None
    dtypes: Mapping[str, str]
    requirements: Sequence[str]
    register_as: str | None
    tags: Mapping[str, str]
    wheel: str | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How the run ended."""

    t: int
    status: EndStatus


@dataclass(frozen=True, slots=True)
class UnknownRecord:
    """A record of another version of ddlflow, as it stands in the spool."""

    t: int
    op: str
    record: Mapping[str, Any]


ValuesLogged = ParamsLogged | TagsLogged | MetricsLogged
SpoolRecord = (
    RunBegan
    | RunResumed
    | ValuesLogged
    | TextLogged
    | FileLogged
    | DatasetLogged
    | ModelLogged
    | RunEnded
    | UnknownRecord
)
OPS: dict[type[Any], str] = {
    RunBegan: "run",
    RunResumed: "resume",
    ParamsLogged: "params",
    TagsLogged: "tags",
    MetricsLogged: "metrics",
    TextLogged: "text",
    FileLogged: "file",
    DatasetLogged: "dataset",
    ModelLogged: "model",
    RunEnded: "end",
}
KINDS = {op: kind for kind, op in OPS.items()}


def to_json(record: SpoolRecord) -> dict[str, Any]:
    """A record as it stands in the spool."""
    if isinstance(record, UnknownRecord):
        return dict(record.record)
    values = {one.name: getattr(record, one.name) for one in fields(record)}
    return {"op": OPS[type(record)], **values}


def from_json(values: Mapping[str, Any]) -> SpoolRecord:
    """The record of what `to_json` gave; `UnknownRecord` of anything else."""
    own = {name: value for name, value in values.items() if name != "op"}
    op = str(values.get("op"))
    kind = KINDS.get(op)
    if kind is not None:
        try:
            found: SpoolRecord = kind(**own)
        except TypeError:  # it has more, or lacks something
            pass
        else:
            return found
    return UnknownRecord(int(values.get("t", 0)), op, values)
