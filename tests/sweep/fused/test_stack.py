"""A stack's members against the same trainings alone; members that leave; pauses and restarts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.errors import TrainingError
from ddlflow.sweep.member import Member, Result
from ddlflow.sweep.run import Piece, start
from ddlflow.sweep.trained import EpochProgress, MemberEpoch
from ddlflow.train.loop import Stopped
from ddlflow.train.saved import checkpoint

WITHIN = 1e-5  # relative: what the issue asks for; what is seen is some 1e-7

OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"lr": 0.1}, {"lr": 0.03, "weight_decay": 0.1}],
    "sgd-momentum": [{"lr": 0.1}, {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.1}],
    "sgd-nesterov": [
        {"lr": 0.1, "momentum": 0.5, "nesterov": True},
        {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
    "adagrad": [{"lr": 0.1}, {"lr": 0.03, "eps": 1e-3, "weight_decay": 0.1}],
    "rmsprop": [{"lr": 0.01}, {"lr": 0.003, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1}],
    "rmsprop-momentum": [{"lr": 0.01}, {"lr": 0.003, "momentum": 0.7}],
    "adam": [{"lr": 0.01}, {"lr": 0.003, "betas": [0.7, 0.99], "eps": 1e-3, "weight_decay": 0.1}],
    "adamw": [{"lr": 0.01}, {"lr": 0.003, "betas": [0.7, 0.99], "weight_decay": 0.3}],
}
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"warmup_steps": 4},
    {"use": "step", "every_epochs": 1, "factor": 0.5},
    {"use": "cosine", "warmup_steps": 3, "end": 0.1},
]


def equal(ground: Any, members: list[Member], unlike: Any) -> dict[str, Result]:
    """Each member's weights, losses and metrics are those of its solo training."""
    fused, apart = ground.fused(members), ground.apart(members)
    for member in members:
        found, expected = fused[member.id], apart[member.id]
        assert found.status == expected.status == "done", found.reason
        assert unlike(found, expected) < WITHIN, member.id
        assert found.best_epoch == expected.best_epoch
        assert found.metrics == pytest.approx(expected.metrics, rel=2e-3, abs=2e-3, nan_ok=True)
    return fused


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(ground: Callable[..., Any], unlike: Any, name: str) -> None:
    use = name.partition("-")[0]
    members = [
        ground().member(f"{k}/{fold}", fold=fold, epochs=2, optimizer={"use": use, **numbers})
        for k, numbers in enumerate(OPTIMIZERS[name])
        for fold in (None, 0, 1)
    ]
    equal(ground(), members, unlike)


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_every_schedule_penalty_and_clipping_beside_each_other(
    ground: Callable[..., Any], unlike: Any, labels: str
) -> None:
    more: list[dict[str, Any]] = [
        {"penalty": {"l1": 1e-2}},
        {"penalty": {"l2": 1e-2}},
        {"penalty": {"l1": 3e-3, "l2": 3e-3}, "clip_norm": 0.05, "seed": 3},
        {"clip_norm": 0.1},
    ]
    members = [
        ground(labels).member(str(k), epochs=3, fold=k % 2, schedule=schedule, **extra)
        for k, (schedule, extra) in enumerate(zip(SCHEDULES, more, strict=True))
    ]
    equal(ground(labels), members, unlike)


def test_a_lasso_has_its_exact_zeros(ground: Callable[..., Any], unlike: Any) -> None:
    settings = {
        "model": {"use": "linear"},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "epochs": 4,
    }
    members = [
        ground("regression").member(f"{l1}", penalty={"l1": l1}, **settings)
        for l1 in (0.0, 0.6, 3.0)
    ]
    found = equal(ground("regression"), members, unlike)
    zeros = {id_: int((r.tensors["weight"] == 0).sum()) for id_, r in found.items() if r.tensors}
    assert zeros["0.0"] == 0
    assert zeros["3.0"] > zeros["0.6"] > 0


@pytest.mark.parametrize("batch_rows", [1, 7, 4096])
def test_batches_of_any_size_and_folds_of_unequal_length(
    ground: Callable[..., Any], unlike: Any, batch_rows: int
) -> None:
    members = [
        ground().member(f"{fold}/{seed}", fold=fold, seed=seed, batch_rows=batch_rows)
        for fold in (None, 0, 1, 2)
        for seed in (1, 2)
    ]
    equal(ground(), members, unlike)


def test_blocks_of_rows_and_of_models_change_nothing(
    ground: Callable[..., Any], unlike: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddlflow.sweep.fused.dense.BLOCK_ROWS", 10)
    monkeypatch.setattr("ddlflow.sweep.fused.dense.BLOCK_NUMBERS", 1)
    for labels, features, hidden in (("binary", "all", [6, 5]), ("multiclass", "numbers", [6])):
        model = {"use": "mlp", "hidden": hidden, "dropout": 0.2, "activation": "tanh"}
        members = [
            ground(labels, features).member(str(k), model=model, fold=k % 2) for k in range(4)
        ]
        equal(ground(labels, features), members, unlike)
    linear = {"use": "linear"}
    members = [ground("regression", "all").member(str(k), model=linear, fold=k) for k in (0, 1)]
    equal(ground("regression", "all"), members, unlike)


# ---- members that leave --------------------------------------------------------------------


def test_members_end_each_in_its_own_epoch(ground: Callable[..., Any], unlike: Any) -> None:
    members = [ground().member(f"{n}", epochs=n, fold=n % 3) for n in (1, 4, 2, 3)]
    found = equal(ground(), members, unlike)
    assert {id_: len(result.history) for id_, result in found.items()} == {
        "1": 1,
        "2": 2,
        "3": 3,
        "4": 4,
    }


def test_early_stopping_keeps_the_best_epochs_weights(
    ground: Callable[..., Any], unlike: Any
) -> None:
    members = [
        ground().member(
            f"{k}",
            epochs=12,
            optimizer={"use": "adam", "lr": lr},
            early_stopping={"metric": metric, "patience": 2},
        )
        for k, (lr, metric) in enumerate([(0.3, "loss"), (0.3, "auroc"), (0.001, "loss")])
    ]
    found = equal(ground(), members, unlike)
    assert min(result.best_epoch for result in found.values()) < 12
    assert found["0"].best_epoch < len(found["0"].history)


def test_a_loss_that_is_no_number_fails_its_member_alone(
    ground: Callable[..., Any], unlike: Any
) -> None:
    labels = ground("regression")
    good = [labels.member(f"good{fold}", fold=fold, epochs=2) for fold in (0, 1)]
    sgd = {"use": "sgd", "lr": 1e-3}
    good = [
        Member(m.id, m.model, labels.member(fold=m.fold, epochs=2, optimizer=sgd).train, m.fold)
        for m in good
    ]
    wild = labels.member("wild", fold=0, epochs=2, optimizer={"use": "sgd", "lr": 1e6})
    found = labels.fused([good[0], wild, good[1]])
    assert found["wild"].status == "failed"
    assert found["wild"].tensors is None
    assert "at epoch 1, step" in found["wild"].reason
    assert "Lower train.optimizer.lr" in found["wild"].reason
    alone = labels.apart([wild])["wild"]
    assert alone.reason == found["wild"].reason
    expected = labels.apart(good)
    for member in good:
        assert unlike(found[member.id], expected[member.id]) < WITHIN


def test_a_pruned_member_leaves_with_what_it_has(ground: Callable[..., Any], unlike: Any) -> None:
    members = [ground().member(f"{k}", epochs=4, fold=k) for k in range(3)]
    stack = start(Piece(tuple(members), True, ""), ground().prepared)
    stack.run_epoch()
    stack.run_epoch()
    assert {id_: len(rows) for id_, rows in stack.histories.items()} == {"0": 2, "1": 2, "2": 2}
    stack.drop(["1"], "halving")
    assert sorted(stack.alive) == ["0", "2"]
    while stack.alive:
        stack.run_epoch()
    pruned = stack.results["1"]
    assert (pruned.status, pruned.reason, len(pruned.history)) == ("pruned", "halving", 2)
    two = ground().apart([ground().member("1", epochs=2, fold=1)])["1"]
    assert unlike(pruned, two) < WITHIN
    expected = ground().apart([members[0], members[2]])
    for id_ in ("0", "2"):
        assert unlike(stack.results[id_], expected[id_]) < WITHIN


# ---- pauses and restarts -------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_saved_stack_goes_on_to_the_same_bits(
    ground: Callable[..., Any], tmp_path: Path, fused: bool
) -> None:
    model = {"use": "mlp", "hidden": [8], "dropout": 0.3}
    rule = {"metric": "loss", "patience": 3}
    count = 3 if fused else 1
    members = tuple(
        ground().member(
            f"{k}",
            epochs=2 + 2 * k if fused else 4,
            fold=k,
            model=model,
            early_stopping=rule,
            schedule={"use": "cosine"},
        )
        for k in range(count)
    )
    piece = Piece(members, fused, "")
    expected = ground().train(piece)
    first = start(piece, ground().prepared)
    for _ in range(3):
        first.run_epoch()
    checkpoint.write(tmp_path, first.epoch, first.snapshot())
    again = ground().train(piece, checkpoints=tmp_path)
    assert again.keys() == expected.keys()
    for id_, result in again.items():
        assert result.tensors is not None
        for name, tensor in (expected[id_].tensors or {}).items():
            assert torch.equal(result.tensors[name], tensor)
        assert [row["loss"] for row in result.history] == [
            row["loss"] for row in expected[id_].history
        ]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    ground: Callable[..., Any], tmp_path: Path
) -> None:
    member = ground().member("m", epochs=2)
    first = start(Piece((member,), True, ""), ground().prepared)
    first.run_epoch()
    checkpoint.write(tmp_path, 1, first.snapshot())
    other = ground().member("m", epochs=2, optimizer={"use": "adam", "lr": 0.5})
    with pytest.raises(TrainingError, match="other settings of train"):
        ground().train(Piece((other,), True, ""), checkpoints=tmp_path)


@pytest.mark.parametrize("fused", [True, False])
def test_it_stops_when_asked_and_tells_of_epochs(ground: Callable[..., Any], fused: bool) -> None:
    events: list[MemberEpoch | EpochProgress] = []
    piece = Piece((ground().member("m", epochs=3, batch_rows=4),), fused, "")
    with pytest.raises(Stopped):
        ground().train(
            piece,
            emit=events.append,
            must_stop=lambda: any(isinstance(event, MemberEpoch) for event in events),
        )
    (ended,) = [event for event in events if isinstance(event, MemberEpoch)]
    assert (ended.id, ended.row["epoch"]) == ("m", 1)
    assert "val_auroc" in ended.row
