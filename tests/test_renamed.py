"""The same bytes under other names are another model: nothing is served under the old ones."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.errors import SpecError
from ddlflow.history.artifacts import RecordedDataset, dataset_of
from ddlflow.history.compare import compare
from ddlflow.history.differences import of_datasets
from ddlflow.infer.predict import infer
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.load import load

ROWS = 600
SITE = {
    "engine": {"use": "local", "workers": 1, "threads": 1},
    "device": "cpu",
    "tracking": {"uri": "sqlite:///mlflow.db"},
}
PIPELINE = {
    "name": "first",
    "data": {"source": "t.parquet", "label": "y"},
    "model": {"use": "mlp", "hidden": [8]},
    "train": {
        "objective": "binary",
        "epochs": 20,
        "batch_rows": 100,
        "optimizer": {"use": "adam", "lr": 0.01},
    },
}
CLASSES = {"no": "background", "yes": "signal"}
TOWNS = {"Aachen": "Alfa", "Bonn": "Bravo", "Celle": "Charly"}


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, ROWS))
    town = random.choice(list(TOWNS), ROWS)
    label = np.where((a > 0) & (town != "Celle"), "yes", "no")
    return pd.DataFrame({"a": a, "b": b, "town": town, "y": label})


# name -> (the table so changed, what `compare` and `reproduce` call the change)
CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "classes": (lambda t: t.assign(y=t.y.map(CLASSES)), "classes"),
    "values": (lambda t: t.assign(town=t.town.map(TOWNS)), "values of town"),
    "number": (lambda t: t.rename(columns={"a": "alpha"}), "numeric features"),
    "category": (lambda t: t.rename(columns={"town": "city"}), "categorical features"),
    "order": (lambda t: t[["b", "a", "town", "y"]], "numeric features"),
    "label": (lambda t: t.rename(columns={"y": "kind"}), "label"),
}


def write(frame: pd.DataFrame, name: str) -> None:
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    path = Path("data") / name
    if path.suffix == ".csv":
        pa.csv.write_csv(rows, path)
    else:
        pq.write_table(rows, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all: what was made under other names lies in its storage."""
    place = tmp_path_factory.mktemp("project")
    for folder in ("pipelines", "conf", "data"):
        (place / folder).mkdir()
    for name in ("first", "second"):
        text = yaml.safe_dump(PIPELINE | {"name": name})
        (place / "pipelines" / f"{name}.yaml").write_text(text)
    (place / "conf" / "local.yaml").write_text(yaml.safe_dump(SITE))
    return place


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def session(pipeline: str, *changes: str) -> Session:
    return Session(load(pipeline, "local", list(changes)), Screen(io.StringIO()))


def run(pipeline: str, *changes: str) -> tuple[dict[str, Stage], pd.DataFrame]:
    """The stages by name, and the predictions."""
    with session(pipeline, *changes) as opened:
        prepared = stages.prepare(opened)
        trained = stages.train(opened, prepared)
        done = [
            prepared,
            trained,
            stages.evaluate(opened, prepared, trained),
            stages.infer(opened, prepared, trained),
        ]
    found = pq.read_table(done[3].value.predictions).to_pandas()
    return {stage.name: stage for stage in done}, found


def manifest(stage: Stage) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((Path(stage.folder) / "manifest.json").read_text())
    return value


def dataset(stage: Stage) -> RecordedDataset:
    return dataset_of(manifest(stage), "manifest.json")


@pytest.fixture(scope="module")
def plain(project: Path) -> dict[str, Stage]:
    """The stages of a run under the first names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        write(table(), "t.parquet")
        return run("first")[0]


@pytest.mark.parametrize("change", ["classes", "values", "number", "order"])
def test_another_name_trains_anew_and_is_what_predictions_say(
    plain: dict[str, Stage], change: str
) -> None:
    renamed, words = CHANGES[change]
    new = renamed(table())
    write(new, "t.parquet")
    write(new, "u.csv")
    after, found = run("first")
    assert not any(stage.cached for stage in after.values())
    # Another pipeline, and a file of another format: the same rows of the same names.
    other, found_there = run("second", "data.source=u.csv")
    assert not other["prepare"].cached
    assert other["train"].cached
    for stages_, predicted in ((after, found), (other, found_there)):
        assert set(predicted.prediction) == set(new.y)
        assert (predicted.prediction.to_numpy() == new.y.to_numpy()).mean() > 0.9
        described = json.loads((Path(stages_["train"].value.model) / "model.json").read_text())
        assert described["columns"] == manifest(stages_["prepare"])["columns"]
    assert words in of_datasets([dataset(plain["prepare"]), dataset(after["prepare"])])
    if change != "order":  # else the same weights under other names
        digests = {one["train"].value.model_digest for one in (plain, after)}
        assert len(digests) == 1


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_every_name_is_part_of_the_digest(ending: str) -> None:
    found = []
    for renamed, _ in [(lambda t: t, ""), *CHANGES.values()]:
        frame = renamed(table())
        write(frame, f"v.{ending}")
        with session(
            "first", f"data.source=v.{ending}", f"data.label={frame.columns[-1]}"
        ) as open_:
            found.append(stages.prepare(open_))
    assert len({stage.value.digest for stage in found}) == 1 + len(CHANGES)
    for stage, (_, words) in zip(found[1:], CHANGES.values(), strict=True):
        assert list(of_datasets([dataset(found[0]), dataset(stage)])) == [words]


def test_folds_and_a_search_are_done_anew_too() -> None:
    changes = ["cv={folds: 2}", "search={method: grid, space: {train.optimizer.lr: [0.01]}}"]
    keys = []
    for frame in (table(), CHANGES["classes"][0](table())):
        write(frame, "t.parquet")
        with session("first", "train.epochs=1", *changes) as opened:
            prepared = stages.prepare(opened)
            keys.append(
                [
                    sweeps.cross_validate(opened, prepared).key,
                    sweeps.search(opened, prepared).key,
                ]
            )
    assert not set(keys[0]) & set(keys[1])


def test_a_source_that_is_read_otherwise_has_a_model_that_reads_it_so() -> None:
    rows = pa.Table.from_pandas(table(), preserve_index=False)
    for sign in (",", ";"):
        options = pa.csv.WriteOptions(delimiter=sign)
        pa.csv.write_csv(rows, "data/t.csv", options)
        after, found = run("first", "data.source=t.csv", f"data.delimiter={sign!r}")
        assert (found.prediction.to_numpy() == table().y.to_numpy()).mean() > 0.9
        described = json.loads((Path(after["train"].value.model) / "model.json").read_text())
        assert described["data"]["delimiter"] == sign


def test_two_data_roots_with_like_files_are_two_sources() -> None:
    for root, frame in (("data", table()), ("other", CHANGES["classes"][0](table()))):
        Path(root).mkdir(exist_ok=True)
        frame = frame.assign(y=frame.y.str[:2])  # noqa: PLW2901 - of one length: equal files
        path = Path(root) / "t.csv"
        pa.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    found = []
    for root in ("data", "other"):
        site = SITE | {"data_root": root, "storage": "kept"}
        Path("conf/other.yaml").write_text(yaml.safe_dump(site))
        request = load("first", "other", ["data.source=t.csv"])
        with Session(request, Screen(io.StringIO())) as opened:
            found.append(stages.prepare(opened).value.classes)
    assert found == [("no", "ye"), ("ba", "si")]


def test_predictions_of_a_namesake_are_not_gone_on_with(
    plain: dict[str, Stage], tmp_path: Path
) -> None:
    """A model's folder, and one whose classes were renamed: the same weights."""
    write(table(), "t.parquet")
    one = Path(plain["train"].value.model)
    other = shutil.copytree(one, tmp_path / "model")
    described = json.loads((other / "model.json").read_text())
    described["columns"]["label"]["classes"] = list(CLASSES.values())
    del described["sha256"]
    (other / "model.json").write_text(json.dumps(described))

    def predicted(model: Path, *, fresh: bool = False) -> set[str]:
        infer(
            model,
            "t.parquet",
            tmp_path / "out",
            keys=[],
            data_root=Path("data").absolute(),
            threads=1,
            map_over=lambda function, items, name: map(function, items),
            fresh=fresh,
        )
        return set(pq.read_table(tmp_path / "out").to_pandas().prediction)

    assert predicted(one) == {"no", "yes"}
    with pytest.raises(SpecError, match="holds the predictions of another model"):
        predicted(other)
    assert predicted(other, fresh=True) == {"background", "signal"}


# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates, and leaves connections to the collector.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compare_names_what_is_called_otherwise() -> None:
    ids = []
    for frame in (table(), CHANGES["classes"][0](table()), CHANGES["order"][0](table())):
        write(frame, "t.parquet")
        with session("first") as opened:
            prepared = stages.prepare(opened)
            with recorded(opened, prepared) as record:
                pass
        ids.append(record.run_id)
    rows = {row.name: row for row in compare(ids).rows if row.group == "data"}
    assert list(rows) == ["data_digest", "numeric features", "classes"]
    assert rows["classes"].values == ["no, yes", "background, signal", "no, yes"]
    assert rows["numeric features"].values == ["a, b", "a, b", "b, a"]
