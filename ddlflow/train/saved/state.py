"""Where a training stands: all that a checkpoint holds and a resumed training goes on from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import StateDict

from ddlflow.errors import CheckpointError
from ddlflow.train.events import DigestMarked
from ddlflow.train.job import TrainingSettings
from ddlflow.train.saved.checkpoint import Plain
from ddlflow.train.saved.digests import digest
from ddlflow.train.tasks.task import Loss

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class BestEpoch:
    """The best epoch so far by the rule of early stopping.

    Attributes:
        epoch: from 1.
        value: of the rule's metric.
        tensors: the net's state after it, on the CPU.
    """

    epoch: int
    value: float
    tensors: Tensors

    def to_plain(self) -> Plain:
        """For a checkpoint; the tensors are not copied, as nobody changes them."""
        return {"epoch": self.epoch, "value": self.value, "tensors": self.tensors}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A `State` at one moment, on the CPU: nobody changes its tensors.

    Attributes:
        net: the net's state.
        optimizer: the optimizer's state, as torch has it.
        epoch: as all that follow, of `State`.
    """

    net: Tensors
    optimizer: StateDict
    epoch: int
    step: int
    steps: int
    loss_sum: float
    loss_count: int
    seconds: float
    history: Sequence[dict[str, float]]
    trail: Sequence[DigestMarked]
    best: BestEpoch | None
    ended: bool

    def to_plain(self) -> Plain:
        """For a checkpoint; the tensors are not copied."""
        return {
            "net": self.net,
            "optimizer": self.optimizer,
            "position": [self.epoch, self.step, self.steps],
            "loss": [self.loss_sum, self.loss_count],
            "seconds": self.seconds,
            "history": list(self.history),
            "trail": [asdict(entry) for entry in self.trail],
            "best": None if self.best is None else self.best.to_plain(),
            "ended": self.ended,
        }

    @classmethod
    def from_plain(cls, saved: Plain) -> Self:
        """What `to_plain` gave."""
        epoch, step, steps = saved["position"]
        loss_sum, loss_count = saved["loss"]
        return cls(
            net=saved["net"],
            optimizer=saved["optimizer"],
            epoch=epoch,
            step=step,
            steps=steps,
            loss_sum=loss_sum,
            loss_count=loss_count,
            seconds=saved["seconds"],
            history=saved["history"],
            trail=[DigestMarked(**entry) for entry in saved["trail"]],
            best=None if saved["best"] is None else BestEpoch(**saved["best"]),
            ended=saved["ended"],
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What a training's checkpoint holds.

    Attributes:
        settings: of the training, which alone may go on from it.
        state: where it stood.
    """

    settings: TrainingSettings
    state: Snapshot

    def to_plain(self) -> Plain:
        """For the file."""
        return {"settings": asdict(self.settings), "state": self.state.to_plain()}

    @classmethod
    def from_plain(cls, saved: Plain, where: str) -> Self:
        """What `to_plain` gave.

        Args:
            saved: what the file holds.
            where: it lies, for the error.

        Raises:
            CheckpointError: another version of ddlflow wrote it.
        """
        try:
            settings = TrainingSettings(**saved["settings"])
            return cls(settings, Snapshot.from_plain(saved["state"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint in {where} was written by another version of ddlflow "
                f"({type(error).__name__}: {error}). Use that version, or start anew with --fresh."
            ) from error


@dataclass(slots=True)
class State:
    """A training between two steps.

    Attributes:
        net: the model that is trained.
        optimizer: with its state.
        epoch: the epoch under way, from 0.
        step: the next step of that epoch, from 0.
        steps: steps done in all.
        loss_sum: of the epoch so far, over ``loss_count`` items.
        seconds: of training, over all attempts.
        history: a row an epoch: loss, validation metrics, learning rate, rows per second.
        trail: the digest trail.
        best: with early stopping, the best epoch.
        ended: whether the last epoch is done, or an early stop was decided.
        unread: of the steps whose loss has not been read from the device yet;
            empty in a snapshot, as losses are read before it is made.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    trail: list[DigestMarked] = field(default_factory=list)
    best: BestEpoch | None = None
    ended: bool = False
    unread: list[Loss] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """A copy on the CPU that later steps do not change."""
        return Snapshot(
            net=copied(self.net.state_dict()),
            optimizer=_copied_tree(self.optimizer.state_dict()),
            epoch=self.epoch,
            step=self.step,
            steps=self.steps,
            loss_sum=self.loss_sum,
            loss_count=self.loss_count,
            seconds=self.seconds,
            history=[dict(row) for row in self.history],
            trail=list(self.trail),
            best=self.best,
            ended=self.ended,
        )

    def restore(self, saved: Snapshot) -> None:
        """Goes back to a snapshot."""
        self.net.load_state_dict(saved.net)
        self.optimizer.load_state_dict(saved.optimizer)
        self.epoch, self.step, self.steps = saved.epoch, saved.step, saved.steps
        self.loss_sum, self.loss_count = saved.loss_sum, saved.loss_count
        self.seconds, self.ended = saved.seconds, saved.ended
        self.history, self.trail, self.best = list(saved.history), list(saved.trail), saved.best

    def mark_digest(self) -> DigestMarked:
        """Adds the parameters as they are now to the digest trail; returns the entry."""
        if not self.trail or self.trail[-1].step != self.steps:
            loss = self.loss_sum / max(self.loss_count, 1)
            self.trail.append(DigestMarked(self.steps, digest(self.net), loss))
        return self.trail[-1]


def copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _copied_tree(value: Any) -> Any:
    """A nested state with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied_tree(inner) for inner in value)
    return value
