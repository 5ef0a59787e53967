"""A member trained apart: the plain model, optimizer and gradients of ``ddlflow.train``.

The same bits as its solo training, without what a sweep does not need of one: no process, no
ledger, no digest trail, no checkpoint but the caller's.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict

from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.order import num_steps
from ddlflow.data.shards.rows import Rows
from ddlflow.spec.pipeline import Lbfgs
from ddlflow.sweep.member import (
    Member,
    Prepared,
    Result,
    check_settings,
    first_net,
    settings_of,
    task_of,
)
from ddlflow.sweep.standing import ADVICE, SavedStanding, Standing
from ddlflow.sweep.trained import Emit, EpochProgress, MemberEpoch
from ddlflow.train import precision
from ddlflow.train.affine_backward import affine_backward
from ddlflow.train.components import fit_components
from ddlflow.train.full_batch import FullBatch, FullBatchOptimizer, optimizer_of, step
from ddlflow.train.loop import EVENT_EVERY_S, READ_EVERY_STEPS, Stopped
from ddlflow.train.optimizer_step import optimizer_step
from ddlflow.train.parallel.layout import ALONE
from ddlflow.train.parallel.replica import read
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.penalty import penalty_on
from ddlflow.train.saved.checkpoint import Plain
from ddlflow.train.saved.state import Snapshot, State, Tensors, copied
from ddlflow.train.tasks.task import Loss
from ddlflow.train.validation import Validation


class Solo:
    """Trains one member; ``Stack`` has the words for its methods.

    Args:
        member: which.
        prepared: the data set.
        emit: as of a stack.
        must_stop: as of a stack.
    """

    def __init__(
        self,
        member: Member,
        prepared: Prepared,
        *,
        emit: Emit = lambda event: None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        spec, device = member.train, prepared.device
        self._emit, self._must_stop = emit, must_stop
        self.epoch = 0
        self.results: dict[str, Result] = {}
        task = task_of(member, prepared)
        label = task.label.scale
        self._standing = Standing(member, task.measures, task.loss_unit)
        self._best: Tensors | None = None
        fold = prepared.folds[member.fold]
        rows = Rows(fold.train, fold.standardisation, label.of_array)
        self._net = first_net(member.model, spec, prepared)
        fit_components(self._net, rows)
        self._net = self._net.to(device)
        (part,) = task.parts
        optimizer = optimizer_of(spec.optimizer, part.of(self._net), device=device)
        self._state = State(self._net, optimizer)
        self._rows = rows.rows
        self._batches = Batches(
            rows,
            batch_rows=spec.batch_rows,
            virtual_ranks=1,
            mine=range(1),
            seed=spec.seed,
            device=device,
        )
        loss_of = precision.loss_of(
            self._net, task, spec.precision, device.type, inputs=rows.inputs
        )
        backward = affine_backward(self._net, task, spec.precision, device.type)
        self._replica = WholeReplica(self._net, loss_of, ALONE, seed=spec.seed, backward=backward)
        self._validate = Validation(
            rows=Rows(fold.validation, fold.standardisation),
            net=self._net,
            task=task,
            rank=0,
            world=1,
            group=None,
            device=device,
        )
        spec = spec.model_copy(update={"penalty": penalty_on(label, spec.penalty)})
        self._full: FullBatch | None = None
        self._step: Callable[[int], None] | None = None
        if isinstance(optimizer, FullBatchOptimizer):
            exact = optimizer.exact
            loss_of = precision.loss_of(exact, task, "float32", device.type, inputs=rows.inputs)
            self._full = FullBatch(rows, exact, loss_of, spec.penalty)
        else:
            steps = num_steps(self._rows, spec.batch_rows)
            self._step = optimizer_step(
                self._replica, self._net, optimizer, spec, steps_per_epoch=steps
            )
        self._said_at = time.monotonic()

    @property
    def alive(self) -> list[str]:
        return [self._standing.member.id] if self._standing.status is None else []

    @property
    def histories(self) -> dict[str, list[dict[str, float]]]:
        return dict.fromkeys(self.alive, self._standing.history)

    def run_epoch(self) -> None:
        if not self.alive:
            return None
        began = time.monotonic()
        standing = self._standing
        is_optimum = self._full_step() if self._full is not None else False
        if self._full is None:
            self._batch_steps()
        if standing.status is None:
            finite = all(bool(weight.isfinite().all()) for weight in self._net.parameters())
            if not finite:
                standing.fail(f"A weight is no number after epoch {self.epoch + 1}. {ADVICE}")
        if standing.status is not None:
            return self._end(began)
        rows_per_s = self._rows / max(time.monotonic() - began, 1e-9)
        self._net.eval()
        metrics = self._validate()
        lr = self._state.optimizer.param_groups[0]["lr"]
        if standing.end_epoch(metrics, lr=lr, rows_per_s=rows_per_s):
            self._best = copied(self._net.state_dict())
        if is_optimum:
            standing.status = "done"
        self.epoch += 1
        self._emit(MemberEpoch(standing.member.id, standing.history[-1]))
        return self._end(began)

    def _full_step(self) -> bool:
        """One step over all rows; whether it reached the optimum."""
        optimizer, spec = self._state.optimizer, self._standing.member.train.optimizer
        assert self._full is not None
        assert isinstance(optimizer, FullBatchOptimizer)
        assert isinstance(spec, Lbfgs)
        if self._must_stop():
            raise Stopped
        is_last = step(optimizer, self._full, self._net, spec)
        self._standing.add_losses([self._full.loss * self._rows], self._rows)
        return is_last

    def _batch_steps(self) -> None:
        """An epoch of batches; where a loss is not finite the member fails and it ends."""
        standing, step = self._standing, self._step
        assert step is not None
        self._net.train()
        unread: list[Loss] = []
        for chunk in self._batches.stream(epoch=self.epoch, step=0, epochs=self.epoch + 1):
            for one in chunk.slices:
                steps = standing.steps + len(unread)
                unread.append(self._replica.gradient([one], step=steps, sharing=1))
                step(steps)
                if len(unread) >= READ_EVERY_STEPS:
                    self._read(unread)
                    if standing.status is not None:
                        return
                    if self._must_stop():
                        raise Stopped
        self._read(unread)

    def drop(self, ids: Iterable[str], reason: str) -> None:
        if set(ids) & set(self.alive):
            self._standing.status, self._standing.reason = "pruned", reason
            self._end(time.monotonic())

    @property
    def seconds(self) -> dict[str, float]:
        return dict.fromkeys(self.alive, self._standing.seconds)

    def snapshot(self) -> Plain:
        return {
            "settings": [asdict(settings_of(self._standing.member))],
            "epoch": self.epoch,
            "results": {id_: result.to_plain() for id_, result in self.results.items()},
            "standings": [asdict(self._standing.saved())] if self.alive else [],
            "state": self._state.snapshot().to_plain(),
            "best": self._best,
        }

    def restore(self, saved: Plain) -> None:
        check_settings(self._standing.member, saved["settings"][0])
        self._state.restore(Snapshot.from_plain(saved["state"]))
        self.results = {id_: Result(**plain) for id_, plain in saved["results"].items()}
        if saved["standings"]:
            self._standing.restore(SavedStanding(**saved["standings"][0]))
        else:
            self._standing.status = next(iter(self.results.values())).status
        self.epoch, self._best = saved["epoch"], saved["best"]

    def _read(self, unread: list[Loss]) -> None:
        """Adds the steps' losses to the epoch's, and tells of the progress."""
        if not unread:
            return
        losses = read(unread)
        for total, count in losses:
            if self._standing.status is None:
                self._standing.add_losses([total], count)
        unread.clear()
        now = time.monotonic()
        if now - self._said_at >= EVENT_EVERY_S and math.isfinite(losses[-1][0]):
            self._said_at = now
            done, epoch = self._standing.loss_rows, self.epoch + 1
            self._emit(EpochProgress(epoch, done, self._rows))

    def _end(self, began: float) -> None:
        """Counts the time; a member that has a status becomes a result."""
        standing = self._standing
        standing.seconds += time.monotonic() - began
        if standing.status is None:
            return
        tensors = None
        if standing.status != "failed":
            tensors = self._best or copied(self._net.state_dict())
        self.results[standing.member.id] = standing.result(tensors, 1)
