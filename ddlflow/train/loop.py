"""The training loop, to be read from top to bottom."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.order import num_steps
from ddlflow.errors import TrainingError
from ddlflow.spec.pipeline import Training
from ddlflow.train.early_stopping import improves, is_out_of_patience
from ddlflow.train.events import EpochEnded, Progressed, Tell
from ddlflow.train.job import TrainingSettings
from ddlflow.train.optimizer_step import optimizer_step
from ddlflow.train.parallel.replica import Replica, read
from ddlflow.train.pulse import Pulse
from ddlflow.train.saved.ledger import Ledger
from ddlflow.train.saved.state import BestEpoch, Saved, State, copied
from ddlflow.train.saved.writer import Writer
from ddlflow.train.tasks.task import Task
from ddlflow.train.validation import row_of

# Losses are read from the device after so many steps, or seconds: a read waits for the device.
READ_EVERY_STEPS = 64
READ_EVERY_S = 0.25
EVENT_EVERY_S = 0.5
# The end of an epoch is saved too, but not oftener than this: a shorter epoch is done again faster
# than its history is written.
SAVE_EPOCH_S = 1.0


class Stopped(Exception):  # noqa: N818 - no error: the training was asked to stop, and did
    """The training was asked to stop; the checkpoint is written."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop is given beside its state; each is a plain callable or value."""

    batches: Batches
    replica: Replica
    task: Task
    validate: Callable[[], dict[str, float]]  # the metrics of the validation split, or {}
    tell: Tell  # of what happens, at most twice a second
    must_stop: Callable[[], bool]
    pulse: Pulse  # marked at each step: the rank is alive
    name_rows: Callable[[int, int], str]  # the rows of (epoch, step), for the message
    ledger: Ledger  # of the rows that this rank puts into each batch
    writer: Writer | None  # rank 0 alone keeps checkpoints
    compare: Callable[[State, str], None]  # raises where the ranks are not alike any more
    settings: TrainingSettings  # of this one: a checkpoint is good for the same ones alone
    rows: int
    sharing: Callable[[int], int]  # by its rows, among how many a batch's gradient is shared
    num_slices: int  # of this rank in a batch: one a virtual rank of its own


def train(  # noqa: PLR0915 - one story, read from top to bottom (design section 10)
    state: State, spec: Training, around: Surroundings
) -> None:
    """Trains from where ``state`` stands to the end of the last epoch (or to an early stop).

    Raises:
        TrainingError: a loss that is not finite, with the rows of its batch; or the ranks are not
            alike any more.
        Stopped: it was asked to stop; the checkpoint is written.
    """
    net, steps = state.net, num_steps(around.rows, spec.batch_rows)
    step = optimizer_step(around.replica, net, state.optimizer, spec, steps_per_epoch=steps)
    clock = time.monotonic
    now = read = reported = saved = clock()
    began = now - state.seconds
    epoch_began, epoch_from = now, min(state.step * spec.batch_rows, around.rows)

    net.train()
    ahead = around.batches.stream(epoch=state.epoch, step=state.step, epochs=spec.epochs)
    for chunk in () if state.ended else ahead:
        around.ledger.begin(chunk, around.num_slices)
        sharing = around.sharing(chunk.batch_rows)
        for at in range(0, len(chunk.slices), around.num_slices):
            slices = chunk.slices[at : at + around.num_slices]
            around.ledger.count()
            loss = around.replica.gradient(slices, step=state.steps, sharing=sharing)
            step(state.steps)
            state.step += 1
            state.steps += 1
            state.unread.append(loss)

            # From here on: what happens every so many steps.
            around.pulse.at = now = clock()
            around.pulse.step = state.steps
            marked = state.steps % spec.digest_every == 0
            if len(state.unread) < READ_EVERY_STEPS and now - read < READ_EVERY_S and not marked:
                continue
            read_losses(state, around)
            read, state.seconds = now, now - began
            if marked:
                mark_digest(state, around)
            if now - reported >= EVENT_EVERY_S:
                reported = now
                around.tell(progress(state, around.rows, spec))
            stopping = around.must_stop()
            if stopping or now - saved >= spec.checkpoint_every_s:
                saved = now
                check_weights(state, around)
                save(state, around)
            if stopping:
                raise Stopped

        if not chunk.ends_epoch:
            continue
        read_losses(state, around)
        check_weights(state, around)
        rows_per_s = (around.rows - epoch_from) / max(clock() - epoch_began, 1e-9)
        around.pulse.resting = True  # no step is done for as long as this takes
        net.eval()
        metrics = around.validate()
        net.train()
        around.pulse.at = clock()
        around.pulse.resting = False
        mark_digest(state, around)
        end_epoch(state, spec, around.task, metrics, rows_per_s)
        state.seconds = clock() - began
        around.tell(EpochEnded(state.history[-1]))
        epoch_began, epoch_from = clock(), 0
        if state.ended or epoch_began - saved >= SAVE_EPOCH_S:
            saved = epoch_began
            save(state, around)
        if state.ended:
            break


def mark_digest(state: State, around: Surroundings) -> None:
    """Compares the ranks, adds an entry to the digest trail and tells of it.

    Raises:
        TrainingError: the ranks are not alike any more.
    """
    entry = state.mark_digest()
    around.compare(state, entry.digest)
    if around.writer is not None:
        around.tell(entry)


def save(state: State, around: Surroundings) -> None:
    """Hands the state to the checkpoints' writer, on the rank that has one."""
    if around.writer is not None:
        saved = Saved(around.settings, state.snapshot())
        around.writer.put(state.steps, saved.to_plain())


def read_losses(state: State, around: Surroundings) -> None:
    """Adds the steps' losses, read from the device, to the epoch's.

    Raises:
        TrainingError: one is not finite; every rank has the same losses, so all of them raise.
    """
    if not state.unread:
        return
    losses = read(state.unread)
    for k, (total, count) in enumerate(losses):
        if not math.isfinite(total):
            raise not_finite(f"The loss is {total}", state, around, state.step - len(losses) + k)
        state.loss_sum += total * around.task.loss_unit
        state.loss_count += count
    state.unread.clear()


def check_weights(state: State, around: Surroundings) -> None:
    """Before the weights are kept.

    Raises:
        TrainingError: one is not finite, though every loss was: it was the last step's gradient.
    """
    if not all(bool(weight.isfinite().all()) for weight in state.net.parameters()):
        raise not_finite("A weight is no number", state, around, state.step - 1)


def not_finite(what: str, state: State, around: Surroundings, step: int) -> TrainingError:
    """The error that names the rows of a step of this epoch (from 0)."""
    return TrainingError(
        f"{what} at epoch {state.epoch + 1}, step {step + 1}. "
        f"{around.name_rows(state.epoch, step)} Lower train.optimizer.lr, set train.clip_norm, or "
        "look at these rows."
    )


def progress(state: State, rows: int, spec: Training) -> Progressed:
    """What moves a progress bar: rows trained on of all rows of all epochs."""
    done = state.epoch * rows + min(state.step * spec.batch_rows, rows)
    loss = state.loss_sum / max(state.loss_count, 1)
    return Progressed(
        step=state.steps,
        done=done,
        total=rows * spec.epochs,
        seconds=state.seconds,
        epoch=state.epoch + 1,
        loss=loss,
    )


def end_epoch(
    state: State, spec: Training, task: Task, metrics: dict[str, float], rows_per_s: float
) -> None:
    """Writes the epoch's row of history and moves to the next; decides on an early stop."""
    row = {
        "epoch": state.epoch + 1,
        "step": state.steps,
        "loss": state.loss_sum / state.loss_count,
        "lr": state.optimizer.param_groups[0]["lr"],
        "rows_per_s": rows_per_s,
        **row_of(metrics),
    }
    state.history.append(row)
    state.epoch, state.step, state.loss_sum, state.loss_count = state.epoch + 1, 0, 0.0, 0
    state.ended = state.epoch >= spec.epochs
    rule = spec.early_stopping
    if rule is None:
        return
    value, best = row[f"val_{rule.metric}"], state.best
    better = task.measures.better(rule.metric)
    if best is None or improves(rule, better, value, best.value):
        tensors = copied(state.net.state_dict())
        state.best = BestEpoch(state.epoch, value, tensors)
    elif is_out_of_patience(rule, state.epoch, best.epoch):
        state.ended = True
