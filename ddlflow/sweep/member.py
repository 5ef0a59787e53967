"""What a sweep trains: members, the rows they train on, and what comes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.rows import ShardFiles, Standardisation
from ddlflow.data.shards.statistics import Statistics
from ddlflow.errors import TrainingError
from ddlflow.models import build
from ddlflow.spec.code import resolve
from ddlflow.spec.pipeline import Model, Training, UserCode
from ddlflow.store.store import Place
from ddlflow.train.saved.checkpoint import Plain
from ddlflow.train.seeding import seed_random
from ddlflow.train.split_rows import standardisation_of
from ddlflow.train.tasks.table import LabelTask, resolved_task
from ddlflow.train.tasks.target import LabelTarget, label_target

Status = Literal["done", "failed", "pruned"]


@dataclass(frozen=True, slots=True)
class Member:
    """One training of a sweep: a setting on the training rows of one fold.

    Its solo training is ``ddlflow.train.training.run`` with one rank, one virtual rank and one
    thread: a fused member has the same rows in the same batches, and the same random numbers.

    Attributes:
        id: of the caller's choice, unique in a sweep.
        model: the pipeline's ``model`` section.
        train: the pipeline's ``train`` section, with a number for every ``auto``.
        fold: a key of ``Prepared.folds``; None: all training rows.
    """

    id: str
    model: Model
    train: Training
    fold: int | None = None


@dataclass(frozen=True, slots=True)
class FoldRows:
    """Where a fold's rows are.

    Attributes:
        train: the shards trained on.
        validation: the shards scored after each epoch; there may be none.
        standardisation: by the statistics of the rows trained on.
        label: statistics of their labels, where these are numbers.
    """

    train: ShardFiles
    validation: ShardFiles
    standardisation: Standardisation
    label: Statistics


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set and where to train on it.

    Attributes:
        folder: of the manifest.
        manifest: of the data set.
        folds: the rows of each fold that a member names.
        code: the folder of the user's modules, or None.
        device: where to compute.
    """

    folder: Place
    manifest: Manifest
    folds: Mapping[int | None, FoldRows]
    code: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a member.

    Attributes:
        id: the member's.
        status: done, failed (see ``reason``) or pruned by the caller.
        reason: a sentence; empty where it is done.
        history: a row an epoch, as a solo training's: epoch, step, loss, lr, rows_per_s, val_*.
        best_epoch: the epoch, from 1, whose weights these are: with early stopping the best one,
            else the last; 0 where no epoch was ended.
        steps: optimizer steps taken.
        tensors: the model's state, on the CPU; None where it failed.
        seconds: of training and scoring, the member's even share of its stack's.
        fused: how many members were in its stack when it began; 1 where it was trained apart.
    """

    id: str
    status: Status
    reason: str
    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    tensors: dict[str, torch.Tensor] | None
    seconds: float
    fused: int

    def to_plain(self) -> Plain:
        """For a checkpoint; ``Result(**plain)`` is the way back."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def metrics(self) -> dict[str, float]:
        """The validation metrics of the best epoch."""
        row = self.history[self.best_epoch - 1] if self.best_epoch else {}
        return {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")}


def whole(folder: Place, manifest: Manifest) -> FoldRows:
    """All training rows against the validation split: the rows of a member without a fold."""
    return FoldRows(
        train=ShardFiles.in_folder(folder, manifest.shards_of("train")),
        validation=ShardFiles.in_folder(folder, manifest.shards_of("validation")),
        standardisation=standardisation_of(manifest),
        label=manifest.label_statistics("train"),
    )


def task_of(member: Member, prepared: Prepared) -> LabelTask:
    """A member's task on the rows of its fold, with user code resolved."""
    known = prepared.folds[member.fold].label
    label = label_target(member.train, prepared.manifest, fold=member.fold, statistics=known)
    return resolved_task(member.train.objective, prepared.code, label)


def first_net(model: Model, train: Training, prepared: Prepared) -> nn.Module:
    """The untrained model, the very one that a solo training starts from."""
    manifest = prepared.manifest
    counted = LabelTarget(num_classes=len(manifest.label.classes) or None)
    task = resolved_task(train.objective, prepared.code, counted)
    user = resolve(model.use, prepared.code) if isinstance(model, UserCode) else None
    seed_random(torch.device("cpu"), train.seed, 0, -1)
    return build(
        model,
        num_features=len(manifest.feature_names),
        category_sizes=[category.size for category in manifest.categories],
        num_outputs=task.num_outputs or 1,
        user_class=user,
        from_zero=train.standardises_label,
        names=manifest.columns.features,
        tensors=manifest.tensors,
    )


def first_nets(members: Sequence[Member], prepared: Prepared) -> list[nn.Module]:
    """Each member's untrained model, on the device; equal ones are the same object."""
    known: dict[str, nn.Module] = {}
    nets = []
    for member in members:
        train = member.train
        key = f"{train.seed} {train.standardises_label} {member.model.model_dump_json()}"
        if key not in known:
            known[key] = first_net(member.model, member.train, prepared).to(prepared.device)
        nets.append(known[key])
    return nets


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What decides a member's numbers: its sections as plain values, and its fold."""

    model: Mapping[str, Any]
    train: Mapping[str, Any]
    fold: int | None


def settings_of(member: Member) -> MemberSettings:
    """Of a member, less what never changes a number."""
    train = resolved(member.train)
    del train["checkpoint_every_s"], train["digest_every"]
    return MemberSettings(resolved(member.model), train, member.fold)


def check_settings(member: Member, saved: Plain) -> None:
    """Raises TrainingError where a checkpoint's member had other settings."""
    now = asdict(settings_of(member))
    changed = [name for name in now if now[name] != saved.get(name)]
    if changed:
        raise TrainingError(
            f"The checkpoint of {member.id} was made with other settings of {', '.join(changed)}; "
            "going on from it would give a model that no single setting gives. Use the same, or "
            "start anew with --fresh."
        )


def resolved(section: Any) -> dict[str, Any]:
    """A section of the pipeline as plain values."""
    values: dict[str, Any] = section.model_dump(mode="json")
    return values
