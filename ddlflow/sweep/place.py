"""Where an engine's worker trains for a sweep, and members as values that travel there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.rows import ShardFiles
from ddlflow.spec.pipeline import Model, Training
from ddlflow.store.store import Place, open_store
from ddlflow.sweep.member import FoldRows, Member, Prepared, whole
from ddlflow.train.split_rows import standardisation_by

Device = Literal["cpu", "cuda"]
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


@dataclass(frozen=True, slots=True)
class Where:
    """Where a sweep trains.

    Attributes:
        dataset: where the manifest lies.
        code: where the user's modules lie, or None.
        device: the kind of device.
        threads: of one piece.
    """

    dataset: str
    code: str | None
    device: Device
    threads: int


@dataclass(frozen=True, slots=True)
class PlainMember:
    """A member that travels: ``model`` and ``train`` are the JSON values of their sections.

    The sections' own classes would be imported where a task is only passed on.
    """

    id: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    fold: int | None


def plain(member: Member) -> PlainMember:
    """A member as values that travel."""
    return PlainMember(
        id=member.id,
        model=member.model.model_dump(mode="json"),
        train=member.train.model_dump(mode="json"),
        fold=member.fold,
    )


def member_of(values: PlainMember) -> Member:
    """The inverse of `plain`."""
    return Member(
        values.id,
        _MODEL.validate_python(values.model),
        Training.model_validate(values.train),
        values.fold,
    )


def prepared_at(where: Where, members: Iterable[Member], number: int) -> Prepared:
    """The data set of these members, on this worker; its GPU goes by a piece's number."""
    manifest = Manifest.load(where.dataset)
    device = torch.device("cpu")
    if where.device == "cuda":
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    folds = {member.fold for member in members}
    return Prepared(
        folder=where.dataset,
        manifest=manifest,
        folds={fold: _rows_of(where.dataset, manifest, fold) for fold in folds},
        code=open_store(where.code).local_folder() if where.code else None,
        device=device,
    )


def _rows_of(folder: Place, manifest: Manifest, fold: int | None) -> FoldRows:
    if fold is None:
        return whole(folder, manifest)
    train, validation = manifest.shards_of_fold(fold)
    return FoldRows(
        train=ShardFiles.in_folder(folder, train),
        validation=ShardFiles.in_folder(folder, validation),
        standardisation=standardisation_by(manifest, manifest.fold_statistics(fold), fold),
        label=manifest.label_statistics(fold=fold),
    )
