"""A stack: members whose models have one shape, trained epoch by epoch as one program."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby

import torch
from torch import Tensor, nn

from ddlflow.data.shards.order import num_steps
from ddlflow.sweep.fused import dropout
from ddlflow.sweep.fused.feed import Feed, Turn
from ddlflow.sweep.fused.program import Noise, Program, matrix
from ddlflow.sweep.fused.scoring import Scoring
from ddlflow.sweep.fused.stacked import Stacked, learning, place, rates_of
from ddlflow.sweep.fused.streams import Pool
from ddlflow.sweep.fused.update import Update
from ddlflow.sweep.member import (
    Member,
    Prepared,
    Result,
    check_settings,
    first_nets,
    settings_of,
    task_of,
)
from ddlflow.sweep.standing import ADVICE, SavedStanding, Standing
from ddlflow.sweep.trained import Emit, EpochProgress, MemberEpoch
from ddlflow.train.loop import EVENT_EVERY_S, Stopped
from ddlflow.train.saved.checkpoint import Plain
from ddlflow.train.saved.state import copied


class Stack:
    """Trains members together; between two epochs it can be paused, thinned out and saved.

    Args:
        members: that may train together (``ddlflow.sweep.fused.plan``); one or more.
        prepared: the data set.
        pool: its rows; those of the members' folds at least.
        program_of: makes the program for a first model.
        emit: gets each member's epochs, and the progress.
        must_stop: asked often; where it says so, ``run_epoch`` raises ``Stopped``.
    """

    def __init__(
        self,
        members: Sequence[Member],
        prepared: Prepared,
        pool: Pool,
        program_of: Callable[[nn.Module], Program],
        *,
        emit: Emit = lambda event: None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._emit, self._must_stop, self._device = emit, must_stop, prepared.device
        self._batch_rows = members[0].train.batch_rows
        self._size = len(members)
        self.epoch = 0
        self.results: dict[str, Result] = {}
        nets = first_nets(members, prepared)
        self._program = program_of(nets[0])
        ones = self._program.wants_ones
        keys = {(member.fold, member.train.seed) for member in members}
        # Members of a stack standardise alike (``plan``), so the fold alone decides.
        tasks = {member.fold: task_of(member, prepared) for member in members}
        labels = {fold: task.label.scale for fold, task in tasks.items()}
        self._streams = {
            (fold, seed): pool.stream(
                fold, seed, batch_rows=self._batch_rows, ones=ones, label=labels[fold]
            )
            for fold, seed in keys
        }
        self._models = [
            Stacked(
                Standing(member, tasks[member.fold].measures, tasks[member.fold].loss_unit),
                net,
                key,
                self._streams[key].rows,
                rates_of(net),
            )
            for member, net in zip(members, nets, strict=True)
            for key in [(member.fold, member.train.seed)]
        ]
        self._models.sort(key=place)
        self._scorings = {
            fold: Scoring(prepared, pool, fold, task, ones=ones) for fold, task in tasks.items()
        }
        self._weights = matrix(len(members), self._program.numbers, self._device)
        self._grads = torch.zeros_like(self._weights)
        with torch.no_grad():
            for model, row in zip(self._models, self._weights, strict=True):
                self._program.pack(model.net, row)
        self._update = Update(
            [learning(model, labels[model.stream[0]]) for model in self._models],
            [num_steps(model.rows, self._batch_rows) for model in self._models],
            self._weights,
            self._grads,
            self._program.penalised,
        )
        self._advance: tuple[int, int, Callable[[], None]] | None = None
        self._arrange()
        self._outputs = torch.empty(0, device=self._device)
        outputs = tasks[members[0].fold].num_outputs or 1
        self._more_outputs = [outputs] if outputs > 1 else []
        self._said_at = time.monotonic()

    @property
    def alive(self) -> list[str]:
        return [model.standing.member.id for model in self._models]

    @property
    def histories(self) -> dict[str, list[dict[str, float]]]:
        return {m.standing.member.id: m.standing.history for m in self._models}

    def run_epoch(self) -> None:
        """Trains and scores one epoch; members that ended or failed leave.

        Raises:
            Stopped: it was asked to stop; the epoch's steps so far are lost.
        """
        began = time.monotonic()
        self._feed.begin(self.epoch)
        total = sum(model.rows for model in self._models)
        done = 0
        while self._models and (turn := self._feed.turn()) is not None:
            self._steps(turn)
            done += (turn.last - turn.first) * turn.steps * turn.rows
            now = time.monotonic()
            if now - self._said_at >= EVENT_EVERY_S:
                self._said_at = now
                self._emit(EpochProgress(self.epoch + 1, done, total))
            if self._must_stop():
                raise Stopped
        self._check_weights()
        self._share(began)
        rows_per_s = done / max(time.monotonic() - began, 1e-9)
        self.epoch += 1
        began = time.monotonic()
        if self._models:
            self._end_epoch(rows_per_s)
        self._share(began)
        self._leave()

    def drop(self, ids: Iterable[str], reason: str) -> None:
        chosen = set(ids)
        for model in self._models:
            if model.standing.member.id in chosen:
                model.standing.status, model.standing.reason = "pruned", reason
        self._leave()

    @property
    def seconds(self) -> dict[str, float]:
        return {m.standing.member.id: m.standing.seconds for m in self._models}

    def snapshot(self) -> Plain:
        return {
            "settings": [asdict(settings_of(model.standing.member)) for model in self._models],
            "epoch": self.epoch,
            "results": {id_: result.to_plain() for id_, result in self.results.items()},
            "standings": [asdict(model.standing.saved()) for model in self._models],
            "weights": self._weights.to("cpu", copy=True),
            "optimizer": {n: v.to("cpu", copy=True) for n, v in self._update.state.items()},
            "best": [None if m.best is None else m.best.to("cpu") for m in self._models],
        }

    def restore(self, saved: Plain) -> None:
        self.results = {id_: Result(**plain) for id_, plain in saved["results"].items()}
        standings = [SavedStanding(**plain) for plain in saved["standings"]]
        known = {standing.id: at for at, standing in enumerate(standings)}
        self._keep([k for k, id_ in enumerate(self.alive) if id_ in known])
        order = [known[id_] for id_ in self.alive]
        for model, at in zip(self._models, order, strict=True):
            check_settings(model.standing.member, saved["settings"][at])
        self.epoch = saved["epoch"]
        self._weights.copy_(saved["weights"][order])
        for name, value in self._update.state.items():
            value.copy_(saved["optimizer"][name][order])
        for model, at in zip(self._models, order, strict=True):
            model.standing.restore(standings[at])
            best = saved["best"][at]
            model.best = None if best is None else best.to(self._device)
        self._update.steps = [model.standing.steps for model in self._models]
        self._advance = None

    def _steps(self, turn: Turn) -> None:
        """Some batches: forward, backward, update; then their losses are looked at."""
        models = self._models[turn.first : turn.last]
        shape = [len(models), turn.steps * turn.rows, *self._more_outputs]
        if list(self._outputs.shape) != shape:
            self._outputs = torch.empty(shape, device=self._device)
        steps = self._feed.take(turn, self._outputs)
        if self._advance is None or self._advance[:2] != (turn.first, turn.last):
            self._advance = turn.first, turn.last, self._update.of(turn.first, turn.last)
        advance = self._advance[2]
        known: list[Tensor] = []
        has_dropout = any(any(model.rates) for model in models)
        for k, step in enumerate(steps):
            if has_dropout:
                step.noise = self._noise(turn, k)
            loss = self._program.gradients(step)
            if loss is not None:
                known.append(loss)
            advance()
        if known:
            losses = torch.stack(known, 1)
        else:
            labels = torch.cat([step.labels for step in steps], 1)
            losses = self._program.head.sums(self._outputs, labels, turn.steps)
        for model, row in zip(models, losses.tolist(), strict=True):
            model.standing.add_losses(row, turn.rows)
        if any(model.standing.status is not None for model in models):
            self._leave()

    def _noise(self, turn: Turn, step: int) -> list[Noise]:
        models = self._models[turn.first : turn.last]
        keys = [(m.standing.member.train.seed, m.standing.steps + step, m.rates) for m in models]
        calls = self._program.dropouts(turn.rows)
        return dropout.draw(calls, keys, first=turn.first, device=self._device)

    def _check_weights(self) -> None:
        for model, finite in zip(
            self._models, self._weights.isfinite().all(1).tolist(), strict=True
        ):
            if not finite:
                model.standing.fail(f"A weight is no number after epoch {self.epoch + 1}. {ADVICE}")
        self._leave()

    def _end_epoch(self, rows_per_s: float) -> None:
        at = 0
        for fold, group in groupby(self._models, lambda model: model.stream[0]):
            models = list(group)
            scores = self._scorings[fold](self._program, at, at + len(models))
            for k, (model, metrics) in enumerate(zip(models, scores, strict=True), start=at):
                lr = self._update.rate(k, self._update.steps[k] - 1)
                if model.standing.end_epoch(metrics, lr=lr, rows_per_s=rows_per_s):
                    model.best = self._weights[k].clone()
                self._emit(MemberEpoch(model.standing.member.id, model.standing.history[-1]))
            at += len(models)

    def _share(self, began: float) -> None:
        """Gives each member its even share of the time since ``began``."""
        seconds = time.monotonic() - began
        for model in self._models:
            model.standing.seconds += seconds / len(self._models)

    def _leave(self) -> None:
        """Members that have a status become results; the others close ranks."""
        staying = []
        for k, model in enumerate(self._models):
            if model.standing.status is None:
                staying.append(k)
                continue
            tensors = None
            if model.standing.status != "failed":
                row = self._weights[k] if model.best is None else model.best
                with torch.no_grad():
                    self._program.unpack(row, model.net)
                tensors = copied(model.net.state_dict())
            id_ = model.standing.member.id
            self.results[id_] = model.standing.result(tensors, self._size)
        self._keep(staying)

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self._models):
            return
        taken = dict(zip(self._feed.streams, self._feed.taken, strict=True))
        self._models = [self._models[row] for row in rows]
        self._weights = self._weights[rows]
        if not rows:
            return
        self._grads = torch.zeros_like(self._weights)
        self._update.keep(rows, self._weights, self._grads)
        self._arrange()
        self._feed.taken = [taken[stream] for stream in self._feed.streams]

    def _arrange(self) -> None:
        """After the models or their number changed."""
        self._advance = None
        self._program.bind(self._weights, self._grads, [model.net for model in self._models])
        runs = [(key, len(list(group))) for key, group in groupby(self._models, lambda m: m.stream)]
        streams = [self._streams[key] for key, _ in runs]
        sizes = [size for _, size in runs]
        self._feed = Feed(streams, sizes, self._batch_rows, [0] * len(runs))
