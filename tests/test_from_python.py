"""From a script or a notebook: pipelines as dicts, tables in memory, results passed on."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import ddlflow
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import PIECE_ROWS, ranges, read
from ddlflow.errors import DataError, SpecError
from ddlflow.redact import hidden_values
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, tables
from ddlflow.runs.session import Session
from ddlflow.runs.tables import check_there, keeping, placed
from ddlflow.spec.load import load
from ddlflow.spec.pipeline import Data
from ddlflow.store.site_storage import storage_of

PIPELINE: dict[str, Any] = {
    "name": "given",
    "data": {"source": "t.parquet", "label": "y"},
    "model": {"use": "mlp", "hidden": (np.int64(8),)},
    "train": {
        "objective": "multiclass",
        "epochs": np.int64(2),
        "batch_rows": 50,
        "optimizer": {"use": "adam", "lr": np.float64(0.02)},
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def site(folder: Path) -> dict[str, Any]:
    return {
        "engine": {"use": "local", "workers": 1, "threads": 1},
        "device": "cpu",
        "data_root": folder,
        "storage": folder / "storage",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }


def frame(rows: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, rows))
    town = random.choice(["Bonn", "Rome", "Turin"], rows)
    y = np.where(a + b > 0.5, "high", np.where(town == "Rome", "low", "mid"))
    found = pd.DataFrame({"a": a, "b": b.astype(np.float32), "town": town, "y": y})
    return found.sample(frac=1, random_state=2)  # its index is no order


def trained(values: dict[str, Any], folder: Path, source: Any = None) -> dict[str, Any]:
    """As ``ddlflow.run`` does, up to the model and the predictions, without Prefect and MLflow."""
    where = load(placed(values, lambda _: "x"), site(folder)).site
    with keeping(storage_of(where)) as keep:
        given = placed(values, keep)
        changes = [] if source is None else [f"data.source={json.dumps(keep(source))}"]
        with Session(load(given, site(folder), changes), Screen()) as session:
            prepared = stages.prepare(session)
            done = stages.train(session, prepared)
            inferred = stages.infer(session, prepared, done)
    return {"prepared": prepared, "trained": done, "inferred": inferred}


class TestValues:
    """A dict is what the file of the same values is."""

    def test_a_pipeline_and_a_site(self, here: Path) -> None:
        before = copy.deepcopy(PIPELINE)
        request = load(PIPELINE, site(here), ["train.epochs=7"])
        assert before == PIPELINE
        values = request.pipeline.model_dump(mode="json", by_alias=True)
        Path("p.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        values = request.site.model_dump(mode="json")
        Path("s.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        from_files = load(Path("p.yaml"), Path("s.yaml"))
        assert from_files.pipeline == request.pipeline
        assert from_files.site == request.site
        assert request.pipeline.train.epochs == 7
        assert request.code_folder == here  # where a notebook's modules are

    def test_what_is_wrong_is_said_without_a_file(self, here: Path) -> None:
        wrong = PIPELINE | {"train": {"objective": "binary", "epochs": 0}, "data": {"source": "x"}}
        with pytest.raises(SpecError) as caught:
            load(wrong, {"engine": {"workers": -1}})
        said = str(caught.value).splitlines()
        assert len(said) == 3
        assert said[0].startswith("the pipeline given: data.label")
        assert said[1].startswith("the pipeline given: train.epochs")
        assert said[2].startswith("the site given: engine.workers")

    def test_secrets_in_values_are_hidden_on_their_way(self, here: Path) -> None:
        url = "https://user:hunter2@host/t.parquet"
        values = PIPELINE | {"data": {"source": url, "label": "y"}}
        shown = hidden_values(
            load(values, site(here)).pipeline.model_dump(mode="json", by_alias=True)
        )
        assert "hunter2" not in json.dumps(shown)
        assert load(shown, site(here)).pipeline.data.source == url


FRAMES = {
    "pandas": lambda table: table,
    "pandas, its own index": lambda table: table.set_index(np.arange(len(table)) * 3),
    "pandas, categories": lambda table: table.astype({"town": "category", "y": "category"}),
    "polars": polars.from_pandas,
    "arrow": lambda table: pa.Table.from_pandas(table, preserve_index=False),
    "arrow, in small pieces": lambda table: pa.Table.from_batches(
        pa.Table.from_pandas(table, preserve_index=False).to_batches(max_chunksize=7)
    ),
    "arrow, a batch": lambda table: pa.RecordBatch.from_pandas(table, preserve_index=False),
}


class TestTables:
    """A table is kept once, under the hash of what it holds."""

    @pytest.mark.parametrize("kind", FRAMES)
    def test_the_same_rows_are_the_same_file(self, here: Path, kind: str) -> None:
        storage = here / "storage"
        with keeping(storage) as keep:
            first = Path(keep(frame()))
            written = first.stat().st_mtime_ns
            assert keep(FRAMES[kind](frame())) == str(first)
        first.unlink()
        with keeping(storage) as keep:  # as if it had never been away
            assert keep(FRAMES[kind](frame())) == str(first)
        assert first.stat().st_mtime_ns == written
        assert [path.name for path in (storage / "tables").iterdir()] == [first.name]
        back = pa.ipc.open_file(first).read_all().to_pandas()
        pd.testing.assert_frame_equal(back, frame().reset_index(drop=True))

    def test_other_rows_names_or_types_are_another_file(self, here: Path) -> None:
        table = frame()
        others = [
            table,
            table.iloc[::-1],
            table.rename(columns={"a": "A"}),
            table.astype({"a": np.float32}),
            table[["b", "a", "town", "y"]],
            table.iloc[:-1],
        ]
        with keeping(here / "storage") as keep:
            assert len({keep(other) for other in others}) == len(others)

    def test_a_table_larger_than_a_piece(self, here: Path) -> None:
        rows = 2 * PIECE_ROWS + 5
        table = polars.DataFrame({"n": np.arange(rows), "t": polars.Series(["é"] * rows)})
        with keeping(here / "storage") as keep:
            place = keep(table)
        source = open_source(place, Data(source="x", label="n"), here)
        parts = ranges(source)
        assert (source.rows, len(parts)) == (rows, 3)
        found = [b.column(0).to_numpy() for p in parts for b in read(source, p, ["n"])]
        np.testing.assert_array_equal(np.concatenate(found), np.arange(rows))

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            (pd.DataFrame({"a": [1, "x"]}), "column a"),
            (pd.DataFrame({"a": []}), "0 rows and 1 columns"),
            (pa.table({}), "0 rows and 0 columns"),
            (pd.DataFrame([[1, 2]], columns=["a", "a"]), "[Dd]uplicate column"),
        ],
    )
    def test_what_is_no_such_table_leaves_nothing(self, here: Path, table: Any, said: str) -> None:
        def kept() -> None:
            with keeping(here / "storage") as keep:
                keep(frame())
                keep(table)

        with pytest.raises(DataError, match=said) as caught:
            kept()
        assert "\n" not in str(caught.value)
        assert not (here / "storage").exists()

    def test_a_reproduction_says_that_the_table_is_gone(self, here: Path) -> None:
        with keeping(here / "storage") as keep:
            place = keep(frame())
        data = Data(source=place, label="y")
        check_there(data, "0123")
        Path(place).unlink()
        with pytest.raises(SpecError, match=r"Run 0123 was given data.source as a table from Py"):
            check_there(data, "0123")
        check_there(Data(source="gone.parquet", label="y"), "0123")  # another error's business

    def test_tables_in_a_dict(self, here: Path) -> None:
        values = PIPELINE | {
            "data": {"source": frame(), "test_source": polars.from_pandas(frame(50)), "label": "y"},
            "infer": {"source": frame(30)},
        }
        found = placed(values, lambda table: f"{len(table)} rows")
        assert found["data"]["source"] == "600 rows"
        assert found["data"]["test_source"] == "50 rows"
        assert found["infer"]["source"] == "30 rows"
        assert values["data"]["source"] is not found["data"]["source"]


def test_a_table_trains_as_its_file_does_and_is_found_done(here: Path) -> None:
    pq.write_table(pa.Table.from_pandas(frame(), preserve_index=False), here / "t.parquet")
    by_file = trained(PIPELINE, here)
    in_dict = PIPELINE | {"data": {"source": frame(), "label": "y"}}
    by_table = trained(in_dict, here)
    again = trained(PIPELINE, here, source=polars.from_pandas(frame()))
    digests = {r["trained"].value.model_digest for r in (by_file, by_table, again)}
    assert len(digests) == 1
    assert not by_table["prepared"].cached
    assert again["prepared"].cached
    assert again["trained"].cached
    manifest = Manifest.load(Path(by_table["prepared"].folder))
    assert manifest.feature_names == ("a", "b")  # and no index

    out = pd.read_parquet(by_table["inferred"].value.predictions)
    assert list(out) == [
        "split",
        "prediction",
        *(f"probability_{name}" for name in ("high", "low", "mid")),
    ]
    assert len(out) == 600
    counts = out["split"].value_counts()
    assert dict(counts) == {n: manifest.rows(n) for n in ("train", "validation", "test")}


def test_a_model_is_loaded_and_applied_from_a_result(here: Path) -> None:
    done = trained(PIPELINE | {"data": {"source": frame(), "label": "y"}}, here)
    result = {"run_id": "1", "model": done["trained"].value.model, "model_uri": "runs:/1/model"}
    model = ddlflow.load_model(result)
    said = model.predict_frame(frame())
    assert said.index.equals(frame().index)
    expected = ddlflow.load_model(Path(result["model"])).predict_frame(frame())
    pd.testing.assert_frame_equal(said, expected)

    new = frame(40).drop(columns="y").assign(id=[f"{k:03d}" for k in range(40)])
    for number, source in enumerate([new, polars.from_pandas(new)]):
        out = ddlflow.predict(result, source, out=here / f"out{number}", on=site(here), keys=["id"])
        assert out["rows"] == 40
        assert out["classes"] == ["high", "low", "mid"]
        found = pd.read_parquet(here / f"out{number}")
        assert found["id"].tolist() == new["id"].tolist()
        np.testing.assert_allclose(
            found["probability_low"], model.predict_frame(new)["probability_low"], rtol=1e-5
        )
    with pytest.raises(SpecError, match="holds no model"):
        ddlflow.load_model({"run_id": "1", "search": {}})


def test_wrong_input_leaves_no_table(here: Path) -> None:
    """From the real function: it ends before Prefect is asked."""
    for values, said in (
        (PIPELINE | {"data": {"source": frame(), "label": "z"}}, "z"),
        (PIPELINE | {"data": {"source": frame(), "label": "y"}, "nonsense": 1}, "nonsense"),
    ):
        with pytest.raises(SpecError, match=said):
            ddlflow.run(values, on=site(here))
    with pytest.raises(SpecError, match="z"):
        ddlflow.run(PIPELINE, on=site(here), set={"data.label": "z"}, source=frame())
    assert list(here.iterdir()) == []
    assert tables.FOLDER == "tables"
