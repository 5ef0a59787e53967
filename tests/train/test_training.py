"""One rank's training from its job to its model folder: it learns, goes on, and names bad rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import SpecError, TrainingError
from ddlflow.infer.model import load_model
from ddlflow.spec.pipeline import Data
from ddlflow.train import training, validation
from ddlflow.train.loop import Stopped
from ddlflow.train.saved import checkpoint
from ddlflow.train.saved.digests import digest

# All that may make one training's bits another's: random numbers, running statistics, a schedule.
RICH = {
    "model": {"use": "mlp", "hidden": [8], "dropout": 0.3, "batch_norm": True},
    "virtual_ranks": 4,
    "batch_rows": 60,
    "digest_every": 1,
    "checkpoint_every_s": 1e-9,
    "schedule": {"use": "cosine", "warmup_steps": 4},
    "early_stopping": {"patience": 9},
    "clip_norm": 1.0,
    "penalty": {"l1": 1e-3, "l2": 1e-3},
}


def history(ended: Any) -> list[dict[str, float]]:
    """The epochs without their speed, which no two runs share."""
    return [
        {key: value for key, value in row.items() if key != "rows_per_s"}
        for row in ended.result["history"]
    ]


# ---- what comes out ------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("features", ["numbers", "all", "categories"])
def test_learns(bench: Callable[..., Any], tmp_path: Path, labels: str, features: str) -> None:
    ended = bench(labels, features).train(tmp_path, epochs=12, batch_rows=32)
    rows = ended.result["history"]
    first, last = rows[0], rows[-1]
    assert last["loss"] < (0.97 if features == "categories" else 0.8) * first["loss"]
    if features != "categories":  # which say too little for so few validation rows
        assert last["val_loss"] < 0.95 * first["val_loss"]
    if features == "all":
        score = {"binary": "auroc", "multiclass": "accuracy", "regression": "r2"}[labels]
        assert ended.result["metrics"][score] > {"auroc": 0.95, "accuracy": 0.7, "r2": 0.7}[score]


def test_the_result_says_what_was_done(bench: Callable[..., Any], tmp_path: Path) -> None:
    made = bench()
    ended = made.train(tmp_path, epochs=2, digest_every=5)
    result = ended.result
    rows = made.manifest.rows("train")
    steps = 2 * -(-rows // 64)
    assert (result["epochs"], result["best_epoch"]) == (2, 2)
    assert (result["steps"], result["rows"]) == (steps, rows)
    assert [entry["step"] for entry in result["trail"]] == sorted(
        {*range(5, steps + 1, 5), steps // 2, steps}
    )
    assert result["trail"][-1]["digest"] == result["model_digest"]
    assert result["metrics"] == {
        key.removeprefix("val_"): value
        for key, value in result["history"][-1].items()
        if key.startswith("val_")
    }
    assert result["seconds"] > 0
    assert ended.named("epoch") == [{"event": "epoch", **row} for row in result["history"]]
    assert not ended.named("resumed")
    assert json.loads((tmp_path / "model" / "train.json").read_text()) == result


@pytest.mark.parametrize(
    ("labels", "features", "model"),
    [
        ("binary", "numbers", {"use": "linear"}),
        ("binary", "all", RICH["model"]),
        ("multiclass", "all", {"use": "mlp", "hidden": [6], "embedding": 2}),
        ("regression", "all", {"use": "linear", "embedding": 2}),
        ("regression", "categories", {"use": "linear"}),
    ],
)
def test_the_model_folder_is_the_trained_model(
    bench: Callable[..., Any], tmp_path: Path, labels: str, features: str, model: dict[str, Any]
) -> None:
    """Loaded, it scores the validation rows exactly as the net did that was trained."""
    made = bench(labels, features)
    result = made.train(tmp_path, epochs=2, model=model).result
    loaded = load_model(tmp_path / "model")
    assert digest(loaded.predictor.net) == loaded.digest == result["model_digest"]
    assert not loaded.predictor.training
    assert [path.name for path in (tmp_path / "model").iterdir() if path.is_dir()] == []
    loss, rows = 0.0, 0
    for shard in made.manifest.shards_of("validation"):
        columns = map_shard(made.dataset / shard.path)
        label = torch.from_numpy(columns["label"])
        part = {name: torch.from_numpy(values.copy()) for name, values in columns.items()}
        part.setdefault("features", torch.empty(len(label), 0))
        with torch.no_grad():
            outputs = loaded.predictor(part)
        loss += loaded.task.criterion.sum(outputs, label).item()
        rows += len(label)
    assert loss / rows == pytest.approx(result["metrics"]["loss"], rel=1e-6)


def test_early_stopping_keeps_the_best_epochs_weights(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    """So fast a learner overshoots: its last epoch is not its best one."""
    ended = bench().train(
        tmp_path,
        epochs=40,
        model={"use": "mlp", "hidden": [50]},
        optimizer={"use": "adam", "lr": 0.3},
        early_stopping={"metric": "loss", "patience": 2},
    )
    result = ended.result
    losses = [row["val_loss"] for row in result["history"]]
    best = int(np.argmin(losses)) + 1
    assert result["best_epoch"] == best < result["epochs"] < 40
    assert result["epochs"] == best + 2
    assert result["metrics"]["loss"] == min(losses)
    steps = result["steps"] // result["epochs"]
    at = {entry["step"]: entry["digest"] for entry in result["trail"]}
    assert result["model_digest"] == at[best * steps] != at[result["steps"]]
    assert digest(load_model(tmp_path / "model").predictor.net) == result["model_digest"]


def test_another_seed_is_another_model_and_the_same_seed_the_same(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    digests = [
        bench().train(tmp_path / str(k), epochs=1, seed=seed).result["model_digest"]
        for k, seed in enumerate((1, 2, 1))
    ]
    assert digests[0] == digests[2] != digests[1]


def test_a_batch_larger_than_the_data_is_all_of_it(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    rows = bench().manifest.rows("train")
    more = {"optimizer": {"use": "sgd", "lr": 0.5}, "epochs": 5}
    ended = [bench().train(tmp_path / str(n), batch_rows=n, **more) for n in (rows, 10 * rows)]
    assert ended[0].result["model_digest"] == ended[1].result["model_digest"]
    assert ended[0].result["steps"] == 5


# ---- the world does not enter --------------------------------------------------------------


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_the_same_training_for_every_world(
    bench: Callable[..., Any],
    ranks: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: str,
) -> None:
    """Weights, losses and metrics; the validation rows come in many small pieces."""
    monkeypatch.setattr(validation, "PIECE_ROWS", 16)
    made = bench(labels, "all")
    more = RICH | {"epochs": 2, "checkpoint_every_s": 1e6}
    found = {}
    for world in (1, 2, 3, 4):

        def one(rank: int, group: Any, world: int = world) -> Any:
            return made.train(
                tmp_path / str(world),
                rank=rank,
                world=world,
                group=group if world > 1 else None,
                **more,
            )

        found[world] = ranks(world, one)[0]
    for ended in found.values():
        assert ended.result["trail"] == found[1].result["trail"]
        assert history(ended) == history(found[1])
        assert ended.result["model_digest"] == found[1].result["model_digest"]
        assert ended.result["metrics"] == found[1].result["metrics"]
    # What is compared depends on the virtual ranks: dropout is drawn for each of them.
    other = made.train(tmp_path / "other", **(more | {"virtual_ranks": 3}))
    assert other.result["model_digest"] != found[1].result["model_digest"]


# ---- stopping and going on -----------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(bench: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The training that nothing stopped."""
    return bench("binary", "all").train(tmp_path_factory.mktemp("whole"), **RICH)


class Killed(Exception):  # noqa: N818 - no error of anyone's
    """Stands in for a kill: nothing more is done, and no checkpoint is asked for."""


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    moments=st.lists(st.integers(1, 33), min_size=1, max_size=4, unique=True).map(sorted),
    killed=st.booleans(),
)
def test_stopped_at_any_moments_it_ends_as_if_it_had_not_been(
    bench: Callable[..., Any],
    whole: Any,
    tmp_path_factory: pytest.TempPathFactory,
    moments: list[int],
    killed: bool,
) -> None:
    made, folder = bench("binary", "all"), tmp_path_factory.mktemp("stopped")
    assert whole.result["steps"] == 30
    steps: list[int] = []
    for moment in [*moments, 10**6]:
        steps.append(0)

        def must_stop(moment: int = moment) -> bool:
            steps[-1] += 1  # it is asked after every step, as every step's digest is wanted
            reached = steps[-1] >= moment
            if reached and killed:
                raise Killed
            return reached

        try:
            ended = made.train(folder, must_stop=must_stop, **RICH)
        except Stopped:
            found = checkpoint.latest(folder / "checkpoints")
            assert found is not None
            assert found["state"]["position"][2] == sum(steps)
            continue
        except Killed:
            continue  # what the writer had put on the disk is some whole step before, or nothing
        break
    assert ended.result["trail"] == whole.result["trail"]
    assert history(ended) == history(whole)
    assert ended.result["model_digest"] == whole.result["model_digest"]
    assert killed or sum(steps) == 30


def test_a_damaged_checkpoint_costs_steps_and_no_bits(
    bench: Callable[..., Any], whole: Any, tmp_path: Path
) -> None:
    made, asked = bench("binary", "all"), iter([False] * 16 + [True])
    with pytest.raises(Stopped):
        made.train(tmp_path, must_stop=lambda: next(asked), **RICH)
    before, last = checkpoint.files(tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / last
    newest.write_bytes(newest.read_bytes()[:-9])
    ended = made.train(tmp_path, **RICH)
    assert [event["step"] for event in ended.named("resumed")] == [checkpoint.step_of(before)]
    assert ended.result["trail"] == whole.result["trail"]
    assert ended.result["model_digest"] == whole.result["model_digest"]


def test_an_ended_training_only_writes_its_model_again(
    bench: Callable[..., Any], whole: Any, tmp_path: Path
) -> None:
    made = bench("binary", "all")
    first = made.train(tmp_path, **RICH)
    (tmp_path / "model" / "weights.pt").unlink()
    again = made.train(tmp_path, must_stop=lambda: pytest.fail("a step was taken"), **RICH)
    assert again.result == first.result
    assert load_model(tmp_path / "model").digest == whole.result["model_digest"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": {"use": "adam", "lr": 0.5}}, "train"),
        ({"epochs": 9}, "train"),
        ({"virtual_ranks": 2}, "virtual_ranks"),
        ({"model": {"use": "linear"}}, "model"),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    bench: Callable[..., Any], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    made = bench()
    asked = iter([False] * 5 + [True])
    given_settings = {"digest_every": 1}
    with pytest.raises(Stopped):
        made.train(tmp_path, must_stop=lambda: next(asked), **given_settings)
    with pytest.raises(TrainingError, match=f"other settings of {named}.*--fresh"):
        made.train(tmp_path, **(given_settings | change))


def test_how_often_checkpoints_are_made_may_change(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    made, asked = bench(), iter([False] * 5 + [True])
    with pytest.raises(Stopped):
        made.train(tmp_path, must_stop=lambda: next(asked), digest_every=1)
    ended = made.train(tmp_path, digest_every=1, checkpoint_every_s=0.5)
    assert ended.named("resumed")


# ---- a loss that is not finite -------------------------------------------------------------


def with_an_outlier(root: Path, row: int) -> tuple[Data, Path]:
    """A regression whose row ``row`` has a number that no model stands; the split is a column."""
    random = np.random.default_rng(1)
    numbers = random.standard_normal(300)
    values = {"y": 2 * numbers, "x": numbers, "z": random.standard_normal(300)}
    values["z"][row] = 1e30
    part = np.array(["train"] * 300, dtype=object)
    part[[3, 4, 5]] = "validation"
    pq.write_table(pa.table({**values, "part": part}), root / "t.parquet")
    spec = Data(source="t.parquet", label="y", split={"column": "part"})
    prepare(spec, "regression", data_root=root, folder=root / "ds", map=lambda f, xs, _: map(f, xs))
    return spec, root / "ds"


LOSS = """
import torch

def loss(outputs, labels, bad):
    return torch.where(labels == bad, float("nan"), 1.0) * (outputs - labels).square()

def slope(outputs, labels, bad):
    "Finite everywhere, but not its gradient: the square root at 0."
    distance = torch.where(labels == bad, 0.0, 1.0) * (outputs - labels)
    return distance.square().sqrt()
"""


def bad_loss(made: Any, tmp_path: Path, name: str) -> dict[str, Any]:
    """A training with a loss of LOSS that is bad in one row, and a checkpoint after every step."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "losses_of_test_training.py").write_text(LOSS)
    (shard, *_) = made.manifest.shards_of("train")
    bad = float(map_shard(made.dataset / shard.path)["label"][17])
    use = f"losses_of_test_training:{name}"
    return {
        "objective": {"use": use, "like": "regression", "bad": bad},
        "code": code,
        "digest_every": 1,
        "checkpoint_every_s": 1e-9,
        "batch_rows": 20,
    }


def test_a_loss_that_is_not_finite_names_its_rows_and_leaves_a_checkpoint(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    made = bench("regression")
    more = bad_loss(made, tmp_path, "loss")
    with pytest.raises(TrainingError, match=r"The loss is nan at epoch 1, step \d+\.") as caught:
        made.train(tmp_path / "t", **more)
    message = str(caught.value)
    assert "Of the batch's 20 rows the most extreme in the source are row " in message
    step = int(message.partition("step ")[2].partition(".")[0])
    found = checkpoint.latest(tmp_path / "t" / "checkpoints")
    if step == 1:
        assert found is None
    else:
        assert found is not None
        assert found["state"]["position"] == [0, step - 1, step - 1]
        assert all(tensor.isfinite().all() for tensor in found["state"]["net"].values())
    # The rows named are rows of that batch.
    rows = [int(text.split()[0]) for text in message.split("row ")[1:]]
    assert len(rows) == 3
    index = {int(r): k for k, r in enumerate(all_rows(made))}
    row_bytes = 4 * len(made.manifest.feature_names) + 4
    batch = set(BatchOrder(len(index), 20, 1, 7, row_bytes).batch(0, step - 1).tolist())
    assert {index[row] for row in rows} <= batch


@pytest.mark.parametrize("batch_rows", [20, 10**6])
def test_weights_that_are_not_finite_are_never_kept(
    bench: Callable[..., Any], tmp_path: Path, batch_rows: int
) -> None:
    """The loss may be finite and its gradient not; also in the very last step of a training."""
    made = bench("regression")
    more = bad_loss(made, tmp_path, "slope") | {"batch_rows": batch_rows, "epochs": 1}
    with pytest.raises(TrainingError, match=r"at epoch 1, step \d+\. Of the batch's \d+ rows "):
        made.train(tmp_path / "t", **more)
    assert not (tmp_path / "t" / "model").exists()
    for name in checkpoint.files(tmp_path / "t" / "checkpoints"):
        net = checkpoint.read(tmp_path / "t" / "checkpoints", name).state["state"]["net"]
        assert all(tensor.isfinite().all() for tensor in net.values())


def all_rows(made: Any) -> np.ndarray:
    """The source's row of each training row, in the order of the shards."""
    shards = made.manifest.shards_of("train")
    return np.concatenate([map_shard(made.dataset / shard.path)["row"] for shard in shards])


def test_the_row_to_look_at_is_named_first(tmp_path: Path, bench: Callable[..., Any]) -> None:
    spec, dataset = with_an_outlier(tmp_path, row=123)
    job = bench("regression").job(
        tmp_path / "t",
        model={"use": "linear"},
        optimizer={"use": "sgd", "lr": 1e20},
        batch_rows=1000,
        epochs=50,
    )
    job = replace(job, dataset=str(dataset), data=spec.model_dump(mode="json"))
    with pytest.raises(TrainingError, match=r"the source are row 123 \(z = 1e\+30\), row "):
        training.run(
            job, 0, 1, None, torch.device("cpu"), tell=lambda e: None, must_stop=lambda: False
        )


# ---- the user's own code -------------------------------------------------------------------

NET = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self, num_features, category_sizes, num_outputs, width=4):
        super().__init__()
        self.towns = nn.Embedding(category_sizes[0], 2)
        self.first = nn.Linear(num_features + 2, width)
        self.last = nn.Linear(width, num_outputs)

    def forward(self, features, categories):
        print("words of the user's own")
        rows = torch.cat([features, self.towns(categories[:, 0])], 1)
        return self.last(torch.relu(self.first(rows))).squeeze(1)

def asymmetric(outputs, labels, weight):
    error = outputs - labels
    return torch.where(error > 0, weight * error, -error).sum()
"""


def test_a_model_and_a_loss_of_the_users_own(bench: Callable[..., Any], tmp_path: Path) -> None:
    made, code = bench("regression", "all"), tmp_path / "code"
    code.mkdir()
    (code / "nets_of_test_training.py").write_text(NET)
    ended = made.train(
        tmp_path / "t",
        code=code,
        model={"use": "nets_of_test_training:Wide", "width": 6},
        objective={
            "use": "nets_of_test_training:asymmetric",
            "like": "regression",
            "weight": 3.0,
        },
        epochs=15,
    )
    rows = ended.result["history"]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    model = tmp_path / "t" / "model"
    assert (model / "code" / "nets_of_test_training.py").read_text() == NET
    with pytest.raises(SpecError, match=r"brings code of its own.*nets_of_test_training.py"):
        load_model(model)
    loaded = load_model(model, trust_code=True)
    assert digest(loaded.predictor.net) == ended.result["model_digest"]
    assert loaded.predictor.net.first.out_features == 6
    batch = made.source.drop(["y"]).to_batches()[0]
    assert loaded.predict(batch).num_rows == batch.num_rows
