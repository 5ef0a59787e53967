"""L-BFGS over all rows: the same bits for any world and through a stop, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ddlflow.errors import SpecError, TrainingError
from ddlflow.history.artifacts import training_of
from ddlflow.history.audit import audit_ledgers
from ddlflow.spec.pipeline import Pipeline, Train
from ddlflow.train import full_batch
from ddlflow.train.auto import resolve
from ddlflow.train.loop import Stopped
from ddlflow.train.saved.checkpoint import latest

LBFGS = {"use": "lbfgs"}
OF_ALL = {"model": {"use": "linear"}, "optimizer": LBFGS, "batch_rows": 10_000, "epochs": 200}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pieces than slices, and more slices than ranks."""
    monkeypatch.setattr(full_batch, "PIECE_ROWS", 32)
    monkeypatch.setattr(full_batch, "SLICES", 7)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_the_same_bits_for_every_world(
    bench: Callable[..., Any], ranks: Callable[..., Any], tmp_path: Path, labels: str
) -> None:
    made = bench(labels, "all")
    found: dict[int, Any] = {}
    for world in (1, 2, 3):

        def one(rank: int, group: Any, world: int = world) -> Any:
            folder = tmp_path / str(world)
            shared = {"rank": rank, "world": world, "group": group if world > 1 else None}
            return made.train(folder, virtual_ranks=world, **shared, **OF_ALL)

        found[world] = ranks(world, one)[0]
    digests = {ended.result["model_digest"] for ended in found.values()}
    assert len(digests) == 1
    assert found[1].result["trail"] == found[3].result["trail"]
    assert 3 < found[1].result["epochs"] < 200
    for world in (1, 2, 3):  # each row once a step
        folder = tmp_path / str(world) / "ledger"
        assert (
            audit_ledgers("r", folder, training_of(found[world].result, "train.json")).faults == []
        )


def test_stopped_and_gone_on_with(bench: Callable[..., Any], tmp_path: Path) -> None:
    made = bench("multiclass", "all")
    straight = made.train(tmp_path / "straight", **OF_ALL)
    calls = iter(range(100))
    with pytest.raises(Stopped):
        made.train(tmp_path / "stopped", must_stop=lambda: next(calls) == 4, **OF_ALL)
    assert latest(tmp_path / "stopped" / "checkpoints")["state"]["position"][0] == 5
    gone_on = made.train(tmp_path / "stopped", **OF_ALL)
    assert gone_on.result["trail"] == straight.result["trail"]
    assert gone_on.result["model_digest"] == straight.result["model_digest"]


def test_a_training_that_ends_before_the_optimum_says_so(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    ended = bench("binary", "all").train(tmp_path, **(OF_ALL | {"epochs": 2}))
    (note,) = ended.named("note")
    assert "The 2 steps of train.epochs ended before the optimum" in note["text"]


def test_infinite_losses_are_an_error(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: Any, start: int, into: Any) -> None:
        into[0] = float("nan")

    monkeypatch.setattr(full_batch.FullBatch, "_add_piece", poisoned)
    with pytest.raises(TrainingError, match="The loss is nan in a step over all rows"):
        bench("binary", "all").train(tmp_path, **OF_ALL)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"penalty": {"l1": 0.1}}, "penalty.l1 \\(use adam or sgd with it"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"precision": "bf16"}, "precision bf16"),
        ({"determinism": "world"}, "determinism world"),
        ({"early_stopping": {}}, "early_stopping"),
        ({"schedule": {"use": "cosine"}}, "schedule"),
    ],
)
def test_what_it_does_not_take(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=f"takes no {named}"):
        Train(objective="binary", optimizer=LBFGS, **settings)


def test_it_is_for_linear_models() -> None:
    with pytest.raises(ValidationError, match="lbfgs, which is for model linear"):
        Pipeline(
            name="p",
            data={"source": "t.csv", "label": "y"},
            model={"use": "mlp"},
            train={"objective": "binary", "optimizer": LBFGS},
        )


def test_auto_is_all_rows() -> None:
    spec = Train(objective="binary", optimizer=LBFGS)
    found = resolve(spec, 5_000, 500)
    assert (found.batch_rows, found.early_stopping) == (5_000, None)
    assert resolve(found, 5_000, 500) == found
    with pytest.raises(SpecError, match=r"batch_rows is 64, and train\.optimizer lbfgs takes all"):
        resolve(Train(objective="binary", optimizer=LBFGS, batch_rows=64), 5_000, 500)
