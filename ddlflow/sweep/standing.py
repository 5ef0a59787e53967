"""Where one member of a sweep stands: its history, its best epoch, and whether it goes on."""

import math
from dataclasses import dataclass, field
from typing import Any

from ddlflow.sweep.member import Member, Result, Status
from ddlflow.train.early_stopping import improves, is_out_of_patience
from ddlflow.train.tasks.measures import Measures
from ddlflow.train.validation import row_of

ADVICE = "Lower train.optimizer.lr, set train.clip_norm, or look at its rows."


@dataclass(frozen=True, slots=True)
class SavedStanding:
    """Where a member stood at an epoch's end; the names are those of its `Standing`."""

    id: str
    epoch: int
    steps: int
    seconds: float
    best_epoch: int
    best_value: float
    history: list[dict[str, float]]


@dataclass(slots=True)
class Standing:
    """A member between two epochs.

    Attributes:
        member: which.
        measures: what is measured of it.
        loss_unit: makes its net's losses those of the label's units.
        epoch: epochs done.
        steps: optimizer steps done.
        loss_sum: of the epoch so far, over ``loss_rows`` rows.
        seconds: its share of the time.
        history: a row an epoch.
        best_epoch: with early stopping, the best so far, from 1; else 0.
        best_value: of the rule's metric at that epoch.
        status: None while it goes on.
        reason: a sentence where it failed or was pruned.
    """

    member: Member
    measures: Measures
    loss_unit: float = 1.0
    epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = math.nan
    status: Status | None = None
    reason: str = ""

    def add_losses(self, losses: list[float], rows: int) -> None:
        """Adds steps of so many rows; the member fails at the first loss that is not finite."""
        for loss in losses:
            if not math.isfinite(loss):
                step = self.loss_rows // max(rows, 1) + 1
                self.fail(f"The loss is {loss} at epoch {self.epoch + 1}, step {step}. {ADVICE}")
                return
            self.loss_sum += loss * self.loss_unit
            self.loss_rows += rows
            self.steps += 1

    def fail(self, reason: str) -> None:
        self.status, self.reason = "failed", reason

    def end_epoch(self, metrics: dict[str, float], *, lr: float, rows_per_s: float) -> bool:
        """Writes the epoch's row of history; decides on an end by the very rule of the loop.

        Returns:
            Whether the weights as they are now are the best so far.
        """
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "step": self.steps,
            "loss": self.loss_sum / self.loss_rows,
            "lr": lr,
            "rows_per_s": rows_per_s,
            **row_of(metrics),
        }
        self.history.append(row)
        self.loss_sum, self.loss_rows = 0.0, 0
        spec = self.member.train
        if self.epoch >= spec.epochs:
            self.status = "done"
        rule = spec.early_stopping
        if rule is None:
            return False
        value = row[f"val_{rule.metric}"]
        better = self.measures.better(rule.metric)
        if improves(rule, better, value, self.best_value):
            self.best_epoch, self.best_value = self.epoch, value
            return True
        if is_out_of_patience(rule, self.epoch, self.best_epoch):
            self.status = "done"
        return False

    def result(self, tensors: Any, fused: int) -> Result:
        """What came of it; ``tensors`` are None where it failed."""
        assert self.status is not None
        return Result(
            id=self.member.id,
            status=self.status,
            reason=self.reason,
            history=self.history,
            best_epoch=self.best_epoch or self.epoch,
            steps=self.steps,
            tensors=tensors,
            seconds=self.seconds,
            fused=fused,
        )

    def saved(self) -> SavedStanding:
        """For a checkpoint."""
        return SavedStanding(
            id=self.member.id,
            epoch=self.epoch,
            steps=self.steps,
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            best_value=self.best_value,
            history=[dict(row) for row in self.history],
        )

    def restore(self, saved: SavedStanding) -> None:
        """Goes back to where it stood at an epoch's end."""
        self.epoch, self.steps, self.seconds = saved.epoch, saved.steps, saved.seconds
        self.best_epoch, self.best_value = saved.best_epoch, saved.best_value
        self.history = [dict(row) for row in saved.history]
        self.loss_sum, self.loss_rows = 0.0, 0
