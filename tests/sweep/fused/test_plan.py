"""What parts stacks, how they are cut, and the measurement that decides."""

from collections.abc import Callable
from typing import Any

import pytest

from ddlflow.sweep import run
from ddlflow.sweep.fused import size
from ddlflow.sweep.fused.plan import MemberGroup, plan_stacks
from ddlflow.sweep.fused.size import StackSize, choose

SGD = {"use": "sgd", "momentum": 0.9}


def test_numbers_share_a_stack(ground: Callable[..., Any]) -> None:
    members = [
        ground().member("a"),
        ground().member("b", optimizer={"use": "adam", "lr": 1.0, "betas": [0.1, 0.2]}),
        ground().member("c", epochs=9, seed=4, clip_norm=1.0, penalty={"l1": 1.0}),
        ground().member("d", schedule={"use": "cosine"}, early_stopping={"metric": "auroc"}),
        ground().member("e", fold=1, model={"use": "mlp", "hidden": [8], "dropout": 0.4}),
        ground().member("f", fold=2, model={"use": "mlp", "hidden": [8], "start": "xavier"}),
    ]
    (group,) = ground().groups(members)
    assert group.apart is None
    assert len(group.members) == 6


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"use": "linear"}},
        {"model": {"use": "mlp", "hidden": [9]}},
        {"model": {"use": "mlp", "hidden": [8], "activation": "tanh"}},
        {"optimizer": {"use": "adamw"}},
        {"optimizer": {"use": "sgd"}},
        {"batch_rows": 65},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_what_parts_stacks(ground: Callable[..., Any], other: dict[str, Any]) -> None:
    members = [ground().member("a"), ground().member("b", **other)]
    assert len(ground().groups(members)) == 2


def test_nesterov_parts_stacks(ground: Callable[..., Any]) -> None:
    members = [
        ground().member("a", optimizer=SGD),
        ground().member("b", optimizer=SGD | {"nesterov": True}),
    ]
    assert len(ground().groups(members)) == 2


def test_never_means_apart(ground: Callable[..., Any]) -> None:
    members = [ground().member(f"{k}") for k in range(3)]
    (group,) = plan_stacks(members, ground().prepared, fuse="never")
    pieces = run.cut(group, ground().prepared)
    assert [(piece.fused, len(piece.members)) for piece in pieces] == [(False, 1)] * 3
    assert pieces[0].why == "sweep.fuse is never"


@pytest.mark.parametrize(
    ("best", "at_least", "sizes"),
    [(4, 1, [3, 3, 4]), (100, 1, [10]), (100, 3, [3, 3, 4]), (1, 1, [1] * 10), (0, 1, [1] * 10)],
)
def test_stacks_are_cut_evenly_with_a_folds_members_together(
    ground: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    best: int,
    at_least: int,
    sizes: list[int],
) -> None:
    members = tuple(ground().member(f"{k}", fold=k % 2) for k in range(10))
    monkeypatch.setattr(run, "choose", lambda *_, **__: StackSize(best, 1e-5, 2e-5))
    pieces = run.cut(MemberGroup(members, None), ground().prepared, at_least=at_least)
    assert [len(piece.members) for piece in pieces] == sizes
    assert all(piece.fused == (best > 0) for piece in pieces)
    folds = [member.fold for piece in pieces for member in piece.members]
    assert folds == sorted(folds)  # type: ignore[type-var]


def test_the_measurement_takes_the_fastest(
    ground: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack_step(members: Any, _: Any) -> Any:
        return len(members)

    monkeypatch.setattr(size, "_stack_step", stack_step)
    monkeypatch.setattr(size, "_solo_step", lambda *_: "solo")
    # A step's seconds by the members in it: a member's share is least with four.
    seconds = {1: 10.0, 4: 16.0, 12: 70.0, "solo": 9.0}
    monkeypatch.setattr(size, "_timed", lambda step, _: seconds[step])
    monkeypatch.setattr(size, "_solo_matters", lambda *_: True)
    members = [ground().member(f"{k}") for k in range(12)]
    assert choose(members, ground().prepared) == StackSize(4, 4.0, 9.0)
    seconds["solo"] = 3.0
    assert choose(members, ground().prepared).size == 0
    assert choose(members, ground().prepared, always=True).size == 4


def test_a_stack_has_to_fit_into_memory(
    ground: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        free = 4 * 4 * 6 * 1000 * 3

    model = {"use": "mlp", "hidden": [150]}
    monkeypatch.setattr(size, "memory", Little)
    monkeypatch.setattr(size, "_timed", lambda step, _: 1.0)
    members = [ground().member(f"{k}", model=model, batch_rows=1) for k in range(12)]
    found = choose(members, ground().prepared).size
    assert 1 <= found < 12


def test_measured_for_real(ground: Callable[..., Any]) -> None:
    members = [ground().member(f"{k}", fold=k % 2) for k in range(6)]
    found = choose(members, ground().prepared)
    assert found.size >= 1
    assert 0 < found.fused_s < 1
