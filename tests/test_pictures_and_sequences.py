"""Tensors and sequences the whole way: prepared, trained, scored, searched, logged, applied."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from ddlflow.errors import DataError
from ddlflow.history.compare import compare
from ddlflow.infer.model import TrainedModel, load_model
from ddlflow.infer.predict import infer
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.check import check
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:DeprecationWarning",
    "ignore::ResourceWarning",  # MLflow leaves connections to its database to the collector
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
ROWS = 411
NET = """
import torch
from torch import nn


class Both(nn.Module):
    def __init__(self, fields, num_outputs, width=6):
        super().__init__()
        self.rnn = nn.GRU(fields["steps"][-1], width, batch_first=True)
        rows, columns = fields["image"]
        self.pixels = nn.Linear(rows * columns, width)
        self.last = nn.Linear(2 * width + fields["features"][0], num_outputs)

    def forward(self, features, image, steps, steps_length):
        found, _ = self.rnn(steps)
        last = (steps_length - 1).clamp(min=0)[:, None, None].expand(-1, 1, found.shape[2])
        ends = found.gather(1, last)[:, 0]
        return self.last(torch.cat([ends, self.pixels(image.flatten(1)), features], 1))

"""
BOTH: dict[str, Any] = {
    "name": "both",
    "data": {"source": "t.parquet", "label": "y", "seed": 3, "features": ["a", "image", "steps"]},
    "model": {"use": "net:Both"},
    "train": {
        "objective": "multiclass",
        "epochs": 3,
        "batch_rows": 50,
        "virtual_ranks": 3,
        "optimizer": {"use": "adam", "lr": 0.02},
    },
    "cv": {"folds": 2},
    "search": {"method": "grid", "space": {"model.width": [4, 5]}},
    "infer": {"keys": ["y"]},
}


def of_readme() -> str:
    """The model of the README's sequences."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (found,) = re.findall(r"```python\n([^`]*class Vowels[^`]*)```", text)
    return str(found)


def table(rows: int = ROWS) -> pa.Table:
    """Pictures and sequences that tell the label, each a part of it."""
    random = np.random.default_rng(2)
    label = random.integers(0, 3, rows)
    pictures = random.integers(0, 100, (rows, 4, 3), dtype=np.uint8)
    pictures[label == 1] += 90
    pairs = zip(lengths(rows), label, strict=True)
    steps = [random.standard_normal((n, 2)) + (y == 2) for n, y in pairs]
    image = pa.fixed_shape_tensor(pa.uint8(), [4, 3])
    flat = pa.array(pictures.reshape(rows, 12).tolist(), image.storage_type)
    return pa.table(
        {
            "a": random.standard_normal(rows),
            "image": pa.ExtensionArray.from_storage(image, flat),
            "steps": pa.array([s.tolist() for s in steps], pa.list_(pa.list_(pa.float32(), 2))),
            "words": pa.array([["x", "y"]] * rows),
            "y": np.array(["low", "mid", "high"])[label],
        }
    )


def lengths(rows: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 9, rows)


def request(folder: Path, pipeline: dict[str, Any], *, workers: int, data: Path) -> tuple[str, str]:
    """A pipeline folder with the user's models, and a site."""
    place = folder / pipeline["name"]
    place.mkdir(exist_ok=True)
    (place / "net.py").write_text(NET + of_readme())
    (place / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    site = {
        "engine": {"use": "local", "workers": workers, "threads": 1},
        "device": "cpu",
        "data_root": str(data),
        "storage": str(folder / f"storage{workers}"),
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "trust_code": True,
    }
    (folder / f"site{workers}.yaml").write_text(yaml.safe_dump(site))
    return str(place), str(folder / f"site{workers}.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on one worker, all stages of it, with its record."""
    folder = tmp_path_factory.mktemp("both")
    pq.write_table(table(), folder / "t.parquet", row_group_size=100)
    asked = request(folder, BOTH, workers=1, data=folder)
    found: dict[str, Any] = {"folder": folder, "asked": asked}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        found["findings"] = check(*asked)
        with Session(load(*asked), Screen()) as session:
            prepared = found["prepared"] = stages.prepare(session)
            with recorded(session, prepared) as record:
                found["search"] = sweeps.search(session, prepared)
                found["cv"] = sweeps.cross_validate(session, prepared)
                trained = found["trained"] = stages.train(session, prepared, record.on_train_event)
                record.trained(trained)
                found["evaluated"] = stages.evaluate(session, prepared, trained)
                record.evaluated(prepared, trained, found["evaluated"])
                found["inferred"] = stages.infer(session, prepared, trained)
                found["uri"] = record.model(prepared, trained)
            found["run"] = record.run_id
    return found


def test_check_tells_what_a_model_gets(done: dict[str, Any]) -> None:
    told = {one.what: one.text for one in done["findings"] if one.level == "ok"}
    assert "2 tensors: image (uint8 [4, 3]), steps (float32 [steps, 2])." in told["source"]
    assert "net:Both: tried" in told["model"]
    assert not [one for one in done["findings"] if one.level == "error"]


def test_a_run_learns_from_each_kind(done: dict[str, Any]) -> None:
    prepared = done["prepared"].value
    assert prepared.tensors == ("image (uint8 [4, 3])", "steps (float32 [steps, 2])")
    assert any("steps has no step in" in warning for warning in prepared.warnings)
    assert done["evaluated"].value.metrics["accuracy"] > 0.7  # 0.33 by chance
    assert [fold.status for fold in done["cv"].value.folds] == ["done"] * 2
    assert done["search"].value.fused == 0
    assert done["search"].value.trainings == 2


def test_two_ranks_train_the_same_bits(done: dict[str, Any], tmp_path: Path) -> None:
    asked = request(tmp_path, BOTH, workers=2, data=done["folder"])
    with Session(load(*asked), Screen()) as session:
        trained = stages.train(session, stages.prepare(session)).value
    assert trained.world == 2
    assert trained.model_digest == done["trained"].value.model_digest


def model_of(done: dict[str, Any]) -> TrainedModel:
    return load_model(Path(done["trained"].value.model), trust_code=True)


def test_tables_of_any_package_get_the_predictions_of_the_file(done: dict[str, Any]) -> None:
    model, source = model_of(done), table()
    parts = sorted(Path(done["inferred"].value.predictions).glob("*.parquet"))
    of_file = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    assert of_file["y"].tolist() == source["y"].to_pylist()
    frame = source.to_pandas()
    stacked = frame.assign(
        image=[np.stack(one).reshape(4, 3) for one in frame["image"]],
        steps=[np.stack(one) if len(one) else one for one in frame["steps"]],
    )
    for given in (source, frame, stacked):
        found = model.predict_frame(given)
        assert found["prediction"].tolist() == of_file["prediction"].tolist()
        for name in ("probability_low", "probability_mid", "probability_high"):
            assert found[name].to_numpy() == pytest.approx(of_file[name].to_numpy(), abs=1e-6)
    alone = model.predict_frame(source.slice(7, 1))  # whatever the batch, but for padding
    assert alone["probability_low"][0] == pytest.approx(of_file["probability_low"][7], abs=1e-6)
    with pytest.raises(DataError, match="lacks column steps"):
        model.predict_frame(source.drop_columns(["steps"]))
    with pytest.raises(DataError, match=r"image holds lists of 5, where image \(uint8 \[4, 3\]\)"):
        model.predict_frame(frame.assign(image=[np.arange(5.0)] * ROWS))
    # Of a row without its sequence nothing can be said; the others are as before.
    gap = model.predict_frame(frame.assign(steps=[None, *frame["steps"][1:]]))
    assert gap.iloc[0].isna().all()
    assert gap["prediction"].tolist()[1:] == of_file["prediction"].tolist()[1:]


def test_a_file_of_another_writer_and_with_gaps(done: dict[str, Any], tmp_path: Path) -> None:
    """Arrow's own arrays of pictures have a permutation; a row without its sequence gets nulls."""
    model, source = model_of(done), table(40)
    stacked = source["image"].combine_chunks().to_numpy_ndarray()
    turned = pa.FixedShapeTensorArray.from_numpy_ndarray(
        np.ascontiguousarray(stacked.transpose(0, 2, 1)).transpose(0, 2, 1)
    )
    assert turned.type.permutation is not None
    steps = source["steps"].to_pylist()
    steps[7] = None
    source = source.set_column(1, "image", turned).set_column(
        2, "steps", pa.array(steps, source.schema.field("steps").type)
    )
    pq.write_table(source, tmp_path / "other.parquet")
    out = tmp_path / "out"
    how: dict[str, Any] = {
        "keys": [],
        "threads": 1,
        "map_over": lambda f, items, name: map(f, items),
    }
    infer(
        done["trained"].value.model,
        "other.parquet",
        out,
        data_root=tmp_path,
        trust_code=True,
        **how,
    )
    (file,) = out.glob("*.parquet")
    found = pd.read_parquet(file)
    assert found.isna().all(axis=1).tolist() == [row == 7 for row in range(40)]
    wanted = model.predict_frame(table(40))
    assert found["prediction"].drop(7).tolist() == wanted["prediction"].drop(7).tolist()
    high = found["probability_high"].drop(7).to_numpy()
    assert high == pytest.approx(wanted["probability_high"].drop(7).to_numpy(), abs=1e-6)


def test_mlflow_serves_it_without_an_example(done: dict[str, Any]) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{done['folder']}/mlflow.db")
    served = mlflow.pyfunc.load_model(done["uri"])
    assert served.metadata.signature is None
    found = served.predict(table().to_pandas())
    assert (
        found["prediction"].tolist() == model_of(done).predict_frame(table())["prediction"].tolist()
    )


def test_a_run_is_compared(done: dict[str, Any]) -> None:
    """With one whose pictures were left out."""
    alike = BOTH | {"data": BOTH["data"] | {"exclude": ["words"], "features": ["a"]}}
    alike = alike | {"model": {"use": "linear"}}
    del alike["search"], alike["cv"]
    asked = request(done["folder"], alike | {"name": "other"}, workers=1, data=done["folder"])
    with Session(load(*asked), Screen()) as session:
        prepared = stages.prepare(session)
        with recorded(session, prepared) as record:
            record.trained(stages.train(session, prepared, record.on_train_event))
    found = compare([done["run"], record.run_id], on=asked[1])
    rows = {row.name: row.values for row in found.rows}
    assert rows["tensors"] == [
        "image (uint8 [4, 3]), steps (float32 [steps, 2])",
        "none of its own",
    ]


# ---- real data -----------------------------------------------------------------------------------


def run(folder: Path, pipeline: dict[str, Any], data: Path) -> dict[str, Any]:
    """The metrics of the test rows."""
    asked = request(folder, pipeline, workers=1, data=data)
    with Session(load(*asked), Screen()) as session:
        prepared = stages.prepare(session)
        trained = stages.train(session, prepared)
        return dict(stages.evaluate(session, prepared, trained).value.metrics)


def test_vowels_by_a_users_recurrent_net(tmp_path: Path, real_data: Path) -> None:
    scored = run(
        tmp_path,
        {
            "name": "vowels",
            "data": {
                "source": "vowels/japanese-vowels-train.parquet",
                "test_source": "vowels/japanese-vowels-test.parquet",
                "label": "label",
                "features": ["sequence"],
                "split": {"validation": 0, "test": 0},
            },
            "model": {"use": "net:Vowels"},
            "train": {
                "objective": "multiclass",
                "epochs": 12,
                "batch_rows": 30,
                "optimizer": {"use": "adam", "lr": 0.01},
            },
        },
        real_data,
    )
    assert scored["rows"] == 370
    assert scored["accuracy"] > 0.93  # others reach 0.96


def torch_alone(train: pa.Table, test: pa.Table) -> float:
    """The accuracy of the same net, as one would write it."""
    torch.manual_seed(1)
    x, v = (
        torch.from_numpy(one["image"].combine_chunks().to_numpy_ndarray().copy()).float()
        for one in (train, test)
    )
    y, w = (torch.from_numpy(one["label"].to_numpy().astype(np.int64)) for one in (train, test))
    mean, deviation = x.mean(), x.std()
    x, v = ((one - mean).div(deviation).flatten(1) for one in (x, v))
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return float((net(v).argmax(1) == w).float().mean())


def test_mnist_without_a_line_of_code(tmp_path: Path, real_data: Path) -> None:
    """A part of it: the first 12,000 digits, and 3 epochs."""
    train = pq.read_table(real_data / "mnist" / "train.parquet").slice(0, 12_000)
    test = pq.read_table(real_data / "mnist" / "test.parquet").slice(0, 4_000)
    for name, part in (("train", train), ("test", test)):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=3_000)
    scored = run(
        tmp_path,
        {
            "name": "mnist",
            "data": {
                "source": "train.parquet",
                "test_source": "test.parquet",
                "label": "label",
                "split": {"validation": 0, "test": 0},
            },
            "model": {"use": "mlp", "hidden": [128]},
            "train": {
                "objective": "multiclass",
                "epochs": 3,
                "batch_rows": 100,
                "optimizer": {"use": "adam", "lr": 0.001},
            },
        },
        tmp_path,
    )
    assert scored["accuracy"] == pytest.approx(torch_alone(train, test), abs=0.012)
    assert scored["accuracy"] > 0.92
