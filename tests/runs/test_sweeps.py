"""The stage cross_validate: folds as a plain PyTorch loop trains them; out-of-fold predictions."""

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from torch import nn

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import TrainingError
from ddlflow.models import build
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.search import Sweep
from ddlflow.spec.site import Site
from ddlflow.train.seeding import seed_random

Values = dict[str, Any]
LOSS: dict[str, Callable[..., torch.Tensor]] = {
    "binary": nn.functional.binary_cross_entropy_with_logits,
    "multiclass": nn.functional.cross_entropy,
    "regression": nn.functional.mse_loss,
}


class Run:
    """Cross-validates pipelines of one storage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def request(self, workers: int, data_root: Path | None, **spec: Any) -> Request:
        site = {
            "engine": {"use": "local", "workers": workers, "threads": 1},
            "device": "cpu",
            "data_root": str(data_root or self.folder),
            "storage": str(self.folder / "storage"),
        }
        return Request(
            pipeline=Pipeline.model_validate({"name": "real", **spec}),
            site=Site.model_validate(site),
            pipeline_path=self.folder / "real.yaml",
            site_path=self.folder / "site.yaml",
            code_folder=self.folder,
        )

    def __call__(
        self, fuse: str = "never", *, workers: int = 1, data_root: Path | None = None, **spec: Any
    ) -> tuple[Stage, list[Stage]]:
        """The stage, and the prepared data of each repeat."""
        request = self.request(workers, data_root, sweep={"fuse": fuse}, **spec)
        screen = io.StringIO()
        assert request.pipeline.cv is not None
        with Session(request, Screen(screen)) as session:
            data = [stages.prepare(session, r) for r in range(request.pipeline.cv.repeats)]
            return sweeps.cross_validate(session, data[0]), data


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def write_table(path: Path, features: np.ndarray, label: Any) -> None:
    columns = {f"x{k}": features[:, k] for k in range(features.shape[1])}
    pq.write_table(pa.table(columns | {"label": label}), path)


# ---- as a plain loop ------------------------------------------------------------------------


def plain_loop(folder: Path, fold: int, model: Values, train: Values, seed: int = 7) -> Values:
    """The same fold by numpy, torch's own layers, loss and Adam: its last loss and its scores."""
    manifest = Manifest.load(folder)
    parts = [
        [map_shard(folder / shard.path) for shard in shards]
        for shards in manifest.shards_of_fold(fold)
    ]
    (x, y), (held_x, held_y) = (
        [np.concatenate([np.asarray(one[name]) for one in part]) for name in ("features", "label")]
        for part in parts
    )
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    std[std == 0] = 1
    x, held_x = ((rows - mean.astype("f4")) * (1 / std).astype("f4") for rows in (x, held_x))
    kind = train["objective"]
    outputs = len(manifest.label.classes) if kind == "multiclass" else 1
    widths = [x.shape[1], *model.get("hidden", ()), outputs]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    section = Pipeline.model_validate(
        {"name": "p", "data": {"source": "s", "label": "l"}, "model": model, "train": train}
    ).model
    seed_random(torch.device("cpu"), seed, 0, -1)
    first = build(
        section,
        num_features=x.shape[1],
        category_sizes=[],
        num_outputs=outputs,
        user_class=None,
    )
    for own, given in zip(net.parameters(), first.parameters(), strict=True):
        own.data = given.detach().clone().reshape(own.shape)
    adam = torch.optim.Adam(net.parameters(), lr=train["optimizer"]["lr"])
    label = torch.tensor(y) if kind == "multiclass" else torch.tensor(y, dtype=torch.float32)

    def forward(rows: torch.Tensor) -> torch.Tensor:
        found = net(rows)
        return found if outputs > 1 else found.squeeze(1)

    summed = 0.0
    for epoch in range(train["epochs"]):
        summed = 0.0
        order = BatchOrder(len(x), train["batch_rows"], 1, seed, 4 * x.shape[1] + label[:1].nbytes)
        for step in range(order.steps):
            rows = torch.from_numpy(order.batch(epoch, step))
            adam.zero_grad()
            loss = LOSS[kind](forward(torch.from_numpy(x)[rows]), label[rows])
            loss.backward()
            adam.step()
            summed += loss.item() * len(rows)
    with torch.no_grad():
        given = forward(torch.from_numpy(held_x))
        target = torch.tensor(held_y, dtype=label.dtype)
        held_loss = LOSS[kind](given, target).item()
    score = {
        "binary": lambda: ("auroc", roc_auc_score(held_y, given)),
        "multiclass": lambda: ("accuracy", accuracy_score(held_y, given.argmax(1))),
        "regression": lambda: ("r2", r2_score(held_y, given)),
    }[kind]()
    return {"train": summed / len(x), "loss": held_loss, score[0]: float(score[1])}


ADAM = {"use": "adam", "lr": 0.01}
BINS = 1e-3  # ddlflow counts outputs in bins: two rows that share one are a tie of the AUROC


@pytest.mark.parametrize("name", ["cancer", "diabetes", "digits", "higgs"])
def test_folds_score_as_a_plain_loop(
    run: Run, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """Trained apart and as one batched program."""
    source, root, objective = f"{name}.parquet", tmp_path, "binary"
    model: Values = {"use": "mlp", "hidden": [16]}
    train: Values = {"epochs": 3, "batch_rows": 50, "optimizer": ADAM}
    if name == "higgs":
        root, source = request.getfixturevalue("real_data"), "higgs-sample/train.parquet"
        train |= {"epochs": 1, "batch_rows": 128}
    elif name == "cancer":
        bunch = load_breast_cancer()
        write_table(tmp_path / source, bunch.data, bunch.target_names[bunch.target])
    elif name == "diabetes":
        bunch, objective, model = load_diabetes(scaled=False), "regression", {"use": "linear"}
        train |= {"optimizer": {"use": "adam", "lr": 2.0}, "standardise_label": False}
        write_table(tmp_path / source, bunch.data, bunch.target)
    else:
        bunch, objective = load_digits(), "multiclass"
        write_table(tmp_path / source, bunch.data, bunch.target)
    train["objective"] = objective
    data = {"source": source, "label": "label", "split": {"validation": 0, "test": 0.1}}
    request = run.request(1, root, data=data, model=model, train=train, cv={"folds": 3})
    found = {}
    with Session(request, Screen(io.StringIO())) as session:
        prepared = stages.prepare(session)
        for fuse in ("never", "always"):
            session.use(request.pipeline.model_copy(update={"sweep": Sweep(fuse=fuse)}))
            found[fuse] = sweeps.cross_validate(session, prepared).value
    expected = [plain_loop(Path(prepared.folder), fold, model, train) for fold in range(3)]
    for fuse, value in found.items():
        assert [fold.fold for fold in value.folds] == [0, 1, 2]
        assert {fold.fused for fold in value.folds} == {3 if fuse == "always" else 1}
        for fold, plain in zip(value.folds, expected, strict=True):
            last = fold.history[-1]
            assert (fold.status, last["epoch"]) == ("done", train["epochs"])
            assert last["loss"] == pytest.approx(plain["train"], rel=1e-4)
            for metric in plain.keys() - {"train"}:
                near = {"abs": BINS} if metric == "auroc" else {"rel": 2e-4}
                assert fold.metrics[metric] == pytest.approx(plain[metric], **near), metric
        for metric, values in value.scores.items():
            each = [fold.metrics[metric] for fold in value.folds]
            assert values.mean == pytest.approx(np.mean(each))
            assert values.std == pytest.approx(np.std(each, ddof=1))
            assert values.stderr == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))


# ---- out-of-fold predictions ------------------------------------------------------------------

ROWS = 240
KINDS = ("binary", "multiclass", "regression")


def small(path: Path, kind: str) -> Values:
    """Three files of rows; the key is each row's number."""
    random = np.random.default_rng(5)
    features = random.standard_normal((ROWS, 3))
    score = features[:, 0] - features[:, 1] + 0.3 * random.standard_normal(ROWS)
    label: Any = {
        "binary": np.where(score > 0, "yes", "no"),
        "multiclass": np.array(["low", "mid", "top"])[np.digitize(score, [-0.7, 0.7])],
        "regression": score,
    }[kind]
    for part in range(3):
        rows = slice(part * 80, part * 80 + 80)
        columns = {f"x{k}": features[rows, k] for k in range(3)} | {"label": label[rows]}
        path.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path / f"{part}.parquet", row_group_size=35)
    return {
        "data": {"source": path.name, "label": "label", "split": {"validation": 0, "test": 0.1}},
        "model": {"use": "mlp", "hidden": [4]},
        "train": {"objective": kind, "epochs": 2, "batch_rows": 32, "optimizer": ADAM},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_training_row_is_predicted_once_by_a_model_that_has_not_seen_it(
    run: Run, tmp_path: Path, kind: str
) -> None:
    spec = small(tmp_path / "t", kind)
    fuse = "always" if kind == "binary" else "never"
    stage, data = run(fuse, **spec, cv={"folds": 3, "predictions": True, "repeats": 2})
    assert [(f.repeat, f.fold) for f in stage.value.folds] == [
        (repeat, fold) for repeat in range(2) for fold in range(3)
    ]
    folder = Path(stage.value.predictions)
    names = [f"repeat-{repeat}-{fold}.parquet" for repeat in range(2) for fold in range(3)]
    said = json.loads((folder / "_SUCCESS").read_text())
    assert said["files"] == names
    assert said.get("probability_of") == ("yes" if kind == "binary" else None)
    source = pa.concat_tables(pq.read_table(tmp_path / "t" / f"{k}.parquet") for k in range(3))
    classes = {"binary": ["no", "yes"], "multiclass": ["low", "mid", "top"], "regression": []}[kind]
    scores = {
        "binary": ["probability"],
        "multiclass": [f"probability_{name}" for name in classes],
        "regression": [],
    }[kind]
    for repeat, prepared in enumerate(data):
        table = pa.concat_tables(pq.read_table(folder / n) for n in names[3 * repeat :][:3])
        expected = ["row", "repeat", "fold", "label", "prediction", *scores]
        assert table.column_names == expected
        assert set(table["repeat"].to_pylist()) == {repeat}
        manifest = Manifest.load(Path(prepared.folder))
        numbers = table["row"].to_pylist()
        kept = [
            row
            for shard in manifest.shards_of("train")
            for row in map_shard(Path(prepared.folder) / shard.path)["row"].tolist()
        ]
        assert len(numbers) == len(set(numbers)) == 216
        assert sorted(numbers) == sorted(kept)
        labels = source["label"].take(pa.array(numbers)).to_pylist()
        if kind == "regression":
            assert table["label"].to_pylist() == pytest.approx(labels, rel=1e-6)
        else:
            assert table["label"].to_pylist() == labels
        for fold in range(3):
            _, held_out = manifest.shards_of_fold(fold)
            part = table.filter(pa.array([f == fold for f in table["fold"].to_pylist()]))
            assert part.num_rows == sum(shard.rows for shard in held_out)
            told = next(
                f.metrics for f in stage.value.folds if (f.repeat, f.fold) == (repeat, fold)
            )
            check_scores(kind, part, told)
    again, _ = run(fuse, **spec, cv={"folds": 3, "predictions": True, "repeats": 2})
    assert again.cached


def check_scores(kind: str, part: pa.Table, told: Values) -> None:
    """The fold's predictions have the very scores that its model had."""
    label, prediction = part["label"].to_pylist(), part["prediction"].to_pylist()
    if kind == "regression":
        assert r2_score(label, prediction) == pytest.approx(told["r2"], abs=1e-5)
        return
    assert accuracy_score(label, prediction) == pytest.approx(told["accuracy"])
    if kind == "binary":
        probability = part["probability"].to_numpy()
        assert roc_auc_score(label, probability) == pytest.approx(told["auroc"], abs=BINS)
        right = np.where(np.array(label) == "yes", probability, 1 - probability)
        assert prediction == ["yes" if p >= 0.5 else "no" for p in probability]
    else:
        names = ["low", "mid", "top"]
        table = np.stack([part[f"probability_{name}"] for name in names], axis=1)
        right = table[np.arange(len(label)), [names.index(one) for one in label]]
        assert prediction == [names[k] for k in table.argmax(1)]
        np.testing.assert_allclose(table.sum(1), 1, rtol=1e-6)
    assert -np.log(right).mean() == pytest.approx(told["log_loss"], rel=1e-4)


# ---- a fold that fails --------------------------------------------------------------------------

NET = """\
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features, broken):
        super().__init__()
        self.broken = Path(broken)
        self.out = nn.Linear(num_features, 1)

    def forward(self, x):
        if self.broken.exists():
            raise RuntimeError("it is broken")
        return self.out(x).squeeze(1)
"""


def test_a_fold_that_failed_is_named_and_tried_again_by_the_next_command(
    run: Run, tmp_path: Path
) -> None:
    spec = small(tmp_path / "t", "binary")
    (tmp_path / "net.py").write_text(NET)
    broken = tmp_path / "broken"
    broken.touch()
    spec["model"] = {"use": "net:Net", "broken": str(broken)}
    with pytest.raises(TrainingError) as failed:
        run(**spec, cv={"folds": 2})
    said = "The training of fold 0 failed: RuntimeError: it is broken ("
    assert str(failed.value).startswith(said)
    assert str(failed.value).endswith("net.py:12)")
    broken.unlink()
    stage, _ = run(**spec, cv={"folds": 2})
    assert [fold.status for fold in stage.value.folds] == ["done", "done"]
