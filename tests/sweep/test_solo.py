"""A member trained apart has the very bits of ``ddlflow.train.training.run``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.sweep.fused.plan import plan_stacks
from ddlflow.train import training
from ddlflow.train.job import Job

MLP = {"use": "mlp", "hidden": [8], "dropout": 0.2, "batch_norm": True}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_same_bits(ground: Callable[..., Any], tmp_path: Path, precision: str) -> None:
    member = ground().member(
        epochs=3,
        model=MLP,
        precision=precision,
        schedule={"use": "cosine", "warmup_steps": 3},
        penalty={"l1": 1e-3},
        clip_norm=0.5,
        early_stopping={"metric": "auroc", "patience": 1},
    )
    job = Job(
        dataset=str(ground().prepared.folder),
        folder=str(tmp_path),
        model=member.model,
        train=member.train,
        data=ground().data,
        labels="binary",
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    told = training.run(
        job, 0, 1, None, torch.device("cpu"), tell=lambda event: None, must_stop=lambda: False
    )
    assert told is not None
    found = ground().apart([member])["m"]
    weights = torch.load(tmp_path / "model" / "weights.pt", weights_only=True)
    assert found.tensors is not None
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, weights[f"net.{name}"]), name
    for row, expected in zip(found.history, told.history, strict=True):
        assert {**row, "rows_per_s": 0} == {**expected, "rows_per_s": 0}
    assert found.best_epoch == told.best_epoch
    assert found.metrics == told.metrics


def test_lbfgs_has_the_same_bits(ground: Callable[..., Any], tmp_path: Path) -> None:
    member = ground().member(
        epochs=100, model={"use": "linear"}, optimizer={"use": "lbfgs"}, penalty={"l2": 1e-3}
    )
    job = Job(
        dataset=str(ground().prepared.folder),
        folder=str(tmp_path),
        model=member.model,
        train=member.train,
        data=ground().data,
        labels="binary",
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    told = training.run(
        job, 0, 1, None, torch.device("cpu"), tell=lambda event: None, must_stop=lambda: False
    )
    assert told is not None
    found = ground().apart([member])["m"]
    assert found.tensors is not None
    weights = torch.load(tmp_path / "model" / "weights.pt", weights_only=True)
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, weights[f"net.{name}"]), name
    assert (found.status, found.steps) == ("done", told.steps)
    assert found.metrics == told.metrics
    (group,) = plan_stacks([member], ground().prepared)
    assert group.apart == "optimizer lbfgs goes to each optimum in steps of its own, over all rows"


def test_folds_have_components_of_their_own(ground: Callable[..., Any]) -> None:
    member = ground().member(epochs=2, model={"use": "linear", "pca": 2})
    (group,) = plan_stacks([member], ground().prepared)
    assert group.apart == "pca is fitted to the rows of each training"
    tensors = ground().apart([member])["m"].tensors
    assert tensors is not None
    assert bool(tensors["components"].any())
