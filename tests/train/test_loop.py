"""The loop over steps: what an expert's bare loop does, and what happens every so many steps."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddlflow.data.shards.batches import Chunk
from ddlflow.errors import CheckpointError, TrainingError
from ddlflow.models import build
from ddlflow.spec.pipeline import MlpSection, Penalty, Train
from ddlflow.train.events import DigestMarked, EpochEnded, Event
from ddlflow.train.job import TrainingSettings
from ddlflow.train.loop import Stopped, Surroundings, end_epoch, progress, train
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.parallel.layout import ALONE
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.penalty import penalised
from ddlflow.train.precision import loss_of
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.state import Saved, Snapshot, State
from ddlflow.train.schedules import factor
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.task import Loss

SETTINGS = TrainingSettings({"use": "mlp"}, {"epochs": 3}, 1, 1, "cpu")
NO_MARKS = np.zeros(0, np.uint64)
ROWS, SIZE = 22, 5
STEPS = 5  # in an epoch; the last batch has two rows


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(ROWS, 3, generator=random), torch.rand(ROWS, generator=random).round()


class InOrder:
    """Batches of the rows as they stand, two steps a chunk: a shuffle would only hide mistakes."""

    def stream(self, *, epoch: int, step: int, epochs: int) -> Iterator[Chunk]:
        columns = [torch.split(column, SIZE) for column in data()]
        steps = [{"features": f, "label": y} for f, y in zip(*columns, strict=True)]
        for e in range(epoch, epochs):
            first = step if e == epoch else 0
            for at in range(first, STEPS - 1, 2):
                stop = min(at + 2, STEPS - 1)
                yield Chunk(e, at, SIZE, steps[at:stop], NO_MARKS, False)
            # No step is left where a checkpoint was made after the epoch's last one.
            last = max(first, STEPS - 1)
            yield Chunk(e, last, ROWS % SIZE, steps[last:], NO_MARKS, True)


class Kept:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.states: list[tuple[int, dict[str, Any]]] = []

    def put(self, step: int, state: dict[str, Any]) -> None:
        self.states.append((step, state))


def model() -> nn.Module:
    torch.manual_seed(0)
    return build(
        MlpSection(use="mlp", hidden=[4]), num_features=3, category_sizes=[], num_outputs=1
    )


def spec(**values: Any) -> Train:
    standard = {"objective": "binary", "epochs": 3, "optimizer": {"use": "adam", "lr": 0.05}}
    return Train(**(standard | {"batch_rows": SIZE} | values))


def begun(wanted: Train) -> State:
    net = model()
    return State(net, make_optimizer(wanted.optimizer, net.parameters(), device="cpu"))


def around(state: State, **values: Any) -> Surroundings:
    standard = {
        "batches": InOrder(),
        "replica": WholeReplica(
            state.net,
            loss_of(state.net, task_for("binary"), "float32", "cpu", inputs=["features"]),
            ALONE,
            seed=0,
        ),
        "task": task_for("binary"),
        "validate": dict,
        "tell": lambda event: None,
        "must_stop": lambda: False,
        "pulse": SimpleNamespace(at=0.0, step=0),
        "name_rows": lambda epoch, step: f"<rows of {epoch}, {step}>",
        "writer": Kept(),
        "compare": lambda state, digest: None,
        "ledger": SimpleNamespace(begin=lambda chunk, slices: None, count=lambda: None),
        "settings": SETTINGS,
        "rows": ROWS,
        "sharing": lambda batch_rows: 1,
        "num_slices": 1,
    }
    return Surroundings(**(standard | values))


def bare(wanted: Train) -> tuple[nn.Module, list[float]]:
    """The same training as one would write it by hand; with the mean loss of each epoch."""
    net, (features, labels) = model(), data()
    optimizer = make_optimizer(wanted.optimizer, net.parameters(), device="cpu")
    losses, steps = [], 0
    for _ in range(wanted.epochs):
        total = 0.0
        for x, y in zip(torch.split(features, SIZE), torch.split(labels, SIZE), strict=True):
            rate = factor(wanted.schedule, steps, steps_per_epoch=STEPS, total_steps=3 * STEPS)
            optimizer.param_groups[0]["lr"] = wanted.optimizer.lr * rate
            optimizer.zero_grad()
            loss = task_for("binary").criterion.sum(net(x), y)
            loss.backward()
            for weight in net.parameters():
                weight.grad /= len(y)
            for weight in penalised(net):
                weight.grad.add_(2 * wanted.penalty.l2 * weight.detach())
            if wanted.clip_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), wanted.clip_norm)
            optimizer.step()
            total += loss.item()
            steps += 1
        losses.append(total / ROWS)
    return net, losses


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": {"use": "sgd", "lr": 0.3, "momentum": 0.9}},
        {"schedule": {"use": "cosine", "warmup_steps": 3}},
        {"schedule": {"use": "step", "factor": 0.5}},
        {"penalty": {"l2": 0.1}},
        {"clip_norm": 0.05},
        {"penalty": {"l2": 5.0}, "clip_norm": 0.5},
    ],
    ids=str,
)
def test_the_same_weights_as_a_loop_written_by_hand(settings: dict[str, Any]) -> None:
    wanted = spec(**settings)
    state = begun(wanted)
    train(state, wanted, around(state))
    net, losses = bare(wanted)
    exact = wanted.penalty == Penalty()  # a penalty's products may be rounded in another order
    for one, other in zip(state.net.parameters(), net.parameters(), strict=True):
        if exact:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other)
    assert [row["loss"] for row in state.history] == pytest.approx(losses, rel=1e-6)
    assert (state.epoch, state.step, state.steps, state.ended) == (3, 0, 3 * STEPS, True)


def test_l1_takes_weights_to_zero_and_leaves_biases() -> None:
    wanted = spec(epochs=60, penalty={"l1": 1.0}, optimizer={"use": "sgd", "lr": 0.05})
    state = begun(wanted)
    train(state, wanted, around(state))
    assert not any(weight.any() for weight in penalised(state.net))
    last = list(state.net.parameters())[-1]
    assert last.any()


def test_history_has_a_row_an_epoch_with_metrics_of_the_evaluated_model() -> None:
    wanted = spec(schedule={"use": "step", "factor": 0.5})
    state = begun(wanted)
    events: list[Event] = []
    modes = []

    def validate() -> dict[str, float]:
        modes.append(state.net.training)
        return {"loss": float(len(modes)), "auroc": 0.5}

    train(state, wanted, around(state, validate=validate, tell=events.append))
    assert modes == [False] * 3
    assert state.net.training
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert [row["step"] for row in state.history] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [row["lr"] for row in state.history] == [0.05, 0.025, 0.0125]
    assert [row["val_loss"] for row in state.history] == [1.0, 2.0, 3.0]
    assert all(row["val_auroc"] == 0.5 and row["rows_per_s"] > 0 for row in state.history)
    assert [event.row for event in events if isinstance(event, EpochEnded)] == state.history


@pytest.mark.parametrize("digest_every", [1, 3, 4, 5, 1000])
def test_the_digest_trail_has_every_nth_step_and_each_epochs_end(digest_every: int) -> None:
    wanted = spec(digest_every=digest_every)
    state = begun(wanted)
    train(state, wanted, around(state))
    steps = [entry.step for entry in state.trail]
    ends = {STEPS, 2 * STEPS, 3 * STEPS}
    assert steps == sorted({*range(digest_every, 3 * STEPS + 1, digest_every), *ends})
    assert len({entry.digest for entry in state.trail}) == len(steps)
    assert state.trail[-1].digest == digest(state.net)
    assert all(math.isfinite(entry.loss) for entry in state.trail)


def test_a_rank_without_a_writer_tells_nothing_and_compares_as_often() -> None:
    wanted = spec(digest_every=2)
    state, other = begun(wanted), begun(wanted)
    told: list[Event] = []
    seen: list[tuple[int, str]] = []
    train(
        state,
        wanted,
        around(
            state,
            writer=None,
            tell=told.append,
            compare=lambda state, digest: seen.append((state.steps, digest)),
        ),
    )
    train(other, wanted, around(other))
    assert not any(isinstance(event, DigestMarked) for event in told)
    # An epoch's end may be an entry's step as well.
    assert list(dict.fromkeys(seen)) == [(entry.step, entry.digest) for entry in other.trail]
    assert digest(state.net) == digest(other.net)
    assert [row["loss"] for row in state.history] == [row["loss"] for row in other.history]


def test_a_checkpoint_at_each_epochs_end_and_when_it_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Epochs shorter than SAVE_EPOCH_S are saved at the training's end alone.
    for every_s, epoch_s, at in (
        (1e6, 0.0, [5, 10, 15]),
        (1e6, 1e6, [15]),
        (1e-9, 1e6, list(range(1, 16))),
    ):
        monkeypatch.setattr("ddlflow.train.loop.SAVE_EPOCH_S", epoch_s)
        wanted, writer = spec(checkpoint_every_s=every_s, digest_every=1), Kept()
        state = begun(wanted)
        train(state, wanted, around(state, writer=writer))
        assert sorted({step for step, _ in writer.states}) == at
        assert all(kept["settings"] == asdict(SETTINGS) for _, kept in writer.states)


def test_from_any_checkpoint_on_the_training_is_the_same() -> None:
    settings = {
        "digest_every": 1,
        "checkpoint_every_s": 1e-9,
        "schedule": {"use": "cosine", "warmup_steps": 2},
        "early_stopping": {"patience": 9},
    }
    wanted, writer = spec(**settings), Kept()
    validate = {"loss": 0.5}.copy
    whole = begun(wanted)
    train(whole, wanted, around(whole, writer=writer, validate=validate))
    for step, kept in writer.states:
        state = begun(wanted)
        state.restore(Snapshot.from_plain(kept["state"]))
        assert state.steps == step
        train(state, wanted, around(state, validate=validate))
        assert digest(state.net) == digest(whole.net)
        assert state.trail == whole.trail
        assert [without_speed(row) for row in state.history] == [
            without_speed(row) for row in whole.history
        ]
        assert all(row["rows_per_s"] >= 0 for row in state.history)
        assert state.best is not None
        assert whole.best is not None
        assert state.best.epoch == whole.best.epoch


def test_what_a_checkpoint_holds_comes_back_and_another_versions_is_named() -> None:
    kept = Saved(SETTINGS, begun(spec()).snapshot()).to_plain()
    assert Saved.from_plain(kept, "here").to_plain() == kept
    for lacking in ({**kept, "state": {}}, {**kept, "settings": {"a": 1}}):
        with pytest.raises(CheckpointError, match="in here was written by another version"):
            Saved.from_plain(lacking, "here")


def without_speed(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "rows_per_s"}


def test_a_snapshot_does_not_change_with_later_steps() -> None:
    wanted, writer = spec(digest_every=1, checkpoint_every_s=1e-9), Kept()
    state = begun(wanted)
    train(state, wanted, around(state, writer=writer))
    digests = {entry.step: entry.digest for entry in state.trail}
    for step, kept in writer.states:
        net = model()
        net.load_state_dict(kept["state"]["net"])
        assert digest(net) == digests[step]
        moments = [s["step"].item() for s in kept["state"]["optimizer"]["state"].values()]
        assert set(moments) == {step}


@pytest.mark.parametrize("at", [1, 4, 5, 6, 15])
def test_when_asked_to_stop_it_leaves_a_checkpoint_of_that_very_step(at: int) -> None:
    wanted, writer = spec(digest_every=1), Kept()
    state = begun(wanted)
    with pytest.raises(Stopped):
        train(state, wanted, around(state, writer=writer, must_stop=lambda: state.steps >= at))
    step, kept = writer.states[-1]
    assert step == state.steps == at
    assert kept["state"]["position"][2] == at


class TestEarlyStopping:
    """Scripted validation metrics, one an epoch."""

    def ended(self, values: list[float], **rule: Any) -> State:
        wanted = spec(epochs=len(values), early_stopping=rule)
        state = begun(wanted)
        found = iter(values)
        metric = rule.get("metric", "loss")
        train(state, wanted, around(state, validate=lambda: {metric: next(found)}))
        assert state.ended
        assert state.best is not None
        return state

    @pytest.mark.parametrize(
        ("values", "rule", "epochs", "best"),
        [
            ([1.0, 0.8, 0.9, 0.95, 0.1], {"patience": 2}, 4, 2),
            ([1.0, 0.8, 0.9, 0.7, 0.9, 0.9, 0.1], {"patience": 2}, 6, 4),
            ([1.0, 0.9, 0.8, 0.7], {"patience": 1}, 4, 4),
            ([1.0, 0.95, 0.91, 0.5], {"patience": 2, "min_delta": 0.2}, 3, 1),
            ([0.6, 0.5, 0.7, 0.6, 0.9], {"patience": 1, "metric": "auroc"}, 2, 1),
            ([0.5, 0.6, 0.7], {"patience": 1, "metric": "auroc"}, 3, 3),
            ([math.nan, 0.9, 0.8, 0.9], {"patience": 1}, 4, 3),
            ([0.9, math.nan, math.nan, 0.1], {"patience": 2}, 3, 1),
        ],
        ids=str,
    )
    def test_stops_when_nothing_has_improved_for_so_long(
        self, values: list[float], rule: dict[str, Any], epochs: int, best: int
    ) -> None:
        state = self.ended(values, **rule)
        assert state.epoch == len(state.history) == epochs
        assert state.best is not None
        assert state.best.epoch == best

    def test_the_best_epochs_weights_are_kept_apart(self) -> None:
        state = self.ended([0.5, 0.9, 0.9], patience=2)
        assert state.best is not None
        assert digest(state.best.tensors) == state.trail[0].digest
        assert digest(state.net) == state.trail[-1].digest != state.trail[0].digest


@pytest.mark.parametrize("bad_step", [0, 3, 4, 7])
def test_a_loss_that_is_not_finite_names_its_rows_and_is_never_kept(bad_step: int) -> None:
    wanted, writer = spec(digest_every=1, checkpoint_every_s=1e-9), Kept()
    state = begun(wanted)
    replica = around(state).replica

    def poisoned(slices: Any, **more: Any) -> Loss:
        loss = replica.gradient(slices, **more)
        is_bad = more["step"] == bad_step
        return Loss(loss.total * math.inf, loss.count) if is_bad else loss

    bad = SimpleNamespace(gradient=poisoned)
    with pytest.raises(TrainingError) as caught:
        train(state, wanted, around(state, replica=bad, writer=writer))
    epoch, step = divmod(bad_step, STEPS)
    assert f"at epoch {epoch + 1}, step {step + 1}. <rows of {epoch}, {step}>" in str(caught.value)
    assert all(step <= bad_step for step, _ in writer.states)
    assert len({step for step, _ in writer.states}) == bad_step


def test_losses_that_are_read_late_name_the_right_step() -> None:
    """Losses stay on the device for many steps; the first bad one counts."""
    wanted = spec()
    state = begun(wanted)
    replica = around(state).replica

    def poisoned(slices: Any, **more: Any) -> Loss:
        loss = replica.gradient(slices, **more)
        is_bad = more["step"] >= STEPS + 2
        return Loss(loss.total * math.nan, loss.count) if is_bad else loss

    with pytest.raises(TrainingError, match=r"is nan at epoch 2, step 3\. <rows of 1, 2>"):
        train(state, wanted, around(state, replica=SimpleNamespace(gradient=poisoned)))


def test_progress_counts_the_rows_trained_on() -> None:
    wanted = spec()
    state = begun(wanted)
    state.epoch, state.step, state.steps = 1, 2, 7
    state.loss_count, state.loss_sum = 10, 5.0
    told = progress(state, ROWS, wanted)
    assert (told.step, told.epoch) == (7, 2)
    assert (told.done, told.total, told.loss) == (ROWS + 2 * SIZE, 3 * ROWS, 0.5)


def test_each_step_is_a_sign_of_life() -> None:
    wanted = spec()
    state = begun(wanted)
    seen = []

    class Listening(SimpleNamespace):
        def __setattr__(self, name: str, value: float) -> None:
            seen.append((name, value))

    train(state, wanted, around(state, pulse=Listening()))
    assert [value for name, value in seen if name == "step"] == list(range(1, 3 * STEPS + 1))
    moments = [value for name, value in seen if name == "at"]
    assert moments == sorted(moments)
    assert len(moments) >= 3 * STEPS


def test_an_ended_training_takes_no_step() -> None:
    wanted = spec()
    state = begun(wanted)
    train(state, wanted, around(state))
    before = digest(state.net)

    def no_step(*_: Any, **__: Any) -> Loss:
        raise AssertionError("a step was taken")

    train(state, wanted, around(state, replica=SimpleNamespace(gradient=no_step)))
    assert digest(state.net) == before
    assert len(state.history) == 3


def test_the_last_epoch_ends_a_training_even_without_early_stopping() -> None:
    wanted = spec(epochs=1)
    state = begun(wanted)
    state.loss_sum, state.loss_count, state.steps = 1.0, 2, 1
    end_epoch(state, wanted, task_for("binary"), {}, 1.0)
    assert state.ended
    assert state.best is None
    assert state.history[0]["loss"] == 0.5
