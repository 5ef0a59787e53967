"""A model's folder becomes predictions; what is no model, or is damaged, is said in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import torch

from ddlflow.errors import DataError, DdlflowError, SpecError
from ddlflow.infer import model as model_module
from ddlflow.infer.model import load_model
from ddlflow.runs.installed import requirements, wheel
from ddlflow.train.saved.description import FORMAT, SEAL

COLUMNS = {
    "binary": {"prediction": pa.string(), "probability": pa.float32()},
    "multiclass": {
        "prediction": pa.int64(),
        "probability_0": pa.float32(),
        "probability_10": pa.float32(),
        "probability_20": pa.float32(),
    },
    "regression": {"prediction": pa.float64()},
}


def batch(table: pa.Table) -> pa.RecordBatch:
    (found,) = table.combine_chunks().to_batches()
    return found


@pytest.mark.parametrize("labels", COLUMNS)
def test_a_row_of_predictions_for_each_row(trained: Callable[..., Any], labels: str) -> None:
    made = trained(labels)
    model = load_model(made.folder)
    found = model.predict(batch(made.source))
    assert dict(zip(found.schema.names, found.schema.types, strict=True)) == COLUMNS[labels]
    assert found.schema.names == model.output_names
    assert found.num_rows == made.source.num_rows
    truth = made.source["y"].to_numpy()
    prediction = found["prediction"].to_numpy(zero_copy_only=False)
    if labels == "regression":
        assert np.mean((prediction - truth) ** 2) < 0.3 * np.var(truth)
        return
    assert np.mean(prediction == truth) > 0.8
    if labels == "binary":
        probability = found["probability"].to_numpy()
        assert set(prediction[probability >= 0.5]) == {"yes"}
        assert set(prediction[probability < 0.5]) == {"no"}
    else:
        values = np.stack([found[f"probability_{name}"] for name in (0, 10, 20)], axis=1)
        np.testing.assert_allclose(values.sum(1), 1, rtol=1e-5)
        np.testing.assert_array_equal(np.array([0, 10, 20])[values.argmax(1)], prediction)


def test_predictions_do_not_depend_on_other_columns_nor_on_the_columns_order(
    trained: Callable[..., Any],
) -> None:
    made = trained()
    model = load_model(made.folder)
    whole = model.predict(batch(made.source))
    others = made.source.select(["year", "town", "b", "a"])
    assert model.predict(batch(others)).equals(whole)
    assert sorted(model.inputs) == ["a", "b", "town", "year"]


def test_many_passes_give_what_one_gives(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained("multiclass")
    model = load_model(made.folder)
    whole = model.predict(batch(made.source)).to_pandas()
    monkeypatch.setattr(model_module, "PASS_ROWS", 64)
    parts = model.predict(batch(made.source)).to_pandas()
    assert whole["prediction"].equals(parts["prediction"])
    pandas.testing.assert_frame_equal(whole, parts, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("labels", COLUMNS)
def test_no_rows_give_no_predictions(trained: Callable[..., Any], labels: str) -> None:
    made = trained(labels)
    found = load_model(made.folder).predict(batch(made.source).slice(0, 0))
    assert found.num_rows == 0
    assert dict(zip(found.schema.names, found.schema.types, strict=True)) == COLUMNS[labels]


def test_missing_and_unseen_values_are_treated_as_in_training(
    trained: Callable[..., Any],
) -> None:
    made = trained()
    model = load_model(made.folder)
    mean = float(made.manifest.statistics("train").mean[made.manifest.feature_names.index("b")])
    rows = {"a": [0.5] * 4, "town": ["Rome"] * 4, "year": [2020] * 4}
    strange = pa.RecordBatch.from_pydict({"b": [None, float("nan"), float("inf"), mean], **rows})
    found = model.predict(strange)["probability"].to_numpy()
    # The mean itself is the rounded number, so equal but for the last bits.
    np.testing.assert_array_equal(found[:3], found[0])
    np.testing.assert_allclose(found[3], found[0], rtol=1e-4)

    rows = {"a": [0.5] * 4, "b": [3.0] * 4}
    unseen = pa.RecordBatch.from_pydict(
        {"town": ["Atlantis", None, "Rome", "Rome"], "year": [2020, 2020, 1066, None], **rows}
    )
    found = model.predict(unseen)["probability"].to_numpy()
    assert found[0] == found[1]
    assert found[2] == found[3]
    known = pa.RecordBatch.from_pydict({"town": ["Rome"], "year": [2020], "a": [0.5], "b": [3.0]})
    assert model.predict(known)["probability"].to_numpy()[0] not in found


def test_a_table_without_a_column_names_it(trained: Callable[..., Any]) -> None:
    made = trained()
    table = made.source.rename_columns(["id", "a", "b", "twon", "year", "y"])
    with pytest.raises(DataError, match=r"lacks column town.*twon"):
        load_model(made.folder).predict(batch(table))
    for frame in (table, table.to_pandas()):  # its own columns are told, none that it lacks
        with pytest.raises(DataError, match=r"The table lacks column town.*twon"):
            load_model(made.folder).predict_frame(frame)


def test_a_pandas_frame_gives_the_same(trained: Callable[..., Any]) -> None:
    made = trained()
    model = load_model(made.folder)
    frame = made.source.drop(["y"]).to_pandas()
    expected = model.predict(batch(made.source)).to_pandas()
    pandas.testing.assert_frame_equal(model.predict_frame(frame), expected)
    # pandas turns whole numbers with a gap into floats.
    gaps = frame.assign(year=frame["year"].astype(float)).sample(frac=1, random_state=0)
    # Another place in a pass may change the last bit, as the kernels take rows several at a time.
    pandas.testing.assert_frame_equal(
        model.predict_frame(gaps), expected.loc[gaps.index], rtol=1e-5
    )


@pytest.mark.parametrize("labels", COLUMNS)
@pytest.mark.parametrize("index", ["shuffled", "words", "two levels", "doubled", "a column"])
def test_predictions_have_the_frames_index(
    trained: Callable[..., Any], labels: str, index: str
) -> None:
    """So they can be assigned to the frame: each row gets its own."""
    made = trained(labels)
    model = load_model(made.folder)
    frame = made.source.to_pandas()
    by_id = model.predict(batch(made.source)).to_pandas()
    changed = {
        "shuffled": lambda: frame.sample(frac=1, random_state=3),
        "words": lambda: frame.set_index("r" + frame["id"].astype(str)).iloc[::-1],
        "two levels": lambda: frame.set_index(["town", "id"], drop=False).iloc[::2],
        "doubled": lambda: pandas.concat([frame, frame]).rename(lambda _: 7),
        "a column": lambda: frame.set_index("a", drop=False).sort_index(),
    }[index]()
    found = model.predict_frame(changed)
    pandas.testing.assert_index_equal(found.index, changed.index)
    if index == "doubled":  # pandas does not align these
        pandas.testing.assert_frame_equal(
            found.reset_index(drop=True),
            pandas.concat([by_id, by_id], ignore_index=True),
            rtol=1e-4,
        )
        return
    changed["said"] = found["prediction"]
    wanted = by_id["prediction"].to_numpy()[changed["id"].to_numpy()]
    if labels == "regression":
        np.testing.assert_allclose(changed["said"], wanted, rtol=1e-4, atol=1e-4)
    else:
        assert changed["said"].tolist() == wanted.tolist()


def test_polars_and_arrow_tables_give_what_pandas_gives(trained: Callable[..., Any]) -> None:
    made = trained("multiclass")
    model = load_model(made.folder)
    expected = model.predict_frame(made.source.to_pandas())
    for table in (made.source, polars.from_arrow(made.source), made.source.to_batches()[0]):
        pandas.testing.assert_frame_equal(model.predict_frame(table), expected)


def test_a_frame_larger_than_what_is_held_at_once(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(trained().folder)
    frame = trained().source.to_pandas()
    whole = model.predict_frame(frame)
    monkeypatch.setattr(model_module, "FRAME_ROWS", 128)
    pandas.testing.assert_frame_equal(model.predict_frame(frame), whole, rtol=1e-5)


def test_a_frame_that_cannot_be_read_is_said_in_a_line(trained: Callable[..., Any]) -> None:
    model = load_model(trained().folder)
    frame = trained().source.to_pandas()
    mixed = frame.assign(town=[3, "Rome"] * 450)
    mixed["no feature"] = [3, "Rome"] * 450  # is nobody's business
    with pytest.raises(DataError, match="column town") as caught:
        model.predict_frame(mixed)
    assert "\n" not in str(caught.value)
    assert len(model.predict_frame(mixed.assign(town="Rome"))) == 900
    with pytest.raises(DataError, match="lacks column town"):
        model.predict_frame(frame.drop(columns="town"))
    with pytest.raises(DataError, match="a list"):
        model.predict_frame([1, 2])


def test_loading_runs_no_code_of_the_weights_and_leaves_the_random_state(
    trained: Callable[..., Any],
) -> None:
    made = trained()
    outputs = [load_model(made.folder).predict(batch(made.source)) for _ in range(2)]
    assert outputs[0].equals(outputs[1])  # dropout and batch norm are in evaluation mode


class TestFoldersThatAreNoModel:
    """Each is one sentence that names the folder."""

    @pytest.fixture
    def copy(self, trained: Callable[..., Any], tmp_path: Path) -> Path:
        return Path(shutil.copytree(trained().folder, tmp_path / "copy"))

    def refused(self, folder: Path, error: type[DdlflowError] = SpecError) -> str:
        with pytest.raises(error) as caught:
            load_model(folder)
        message = str(caught.value)
        assert str(folder) in message
        assert "\n" not in message
        return message

    @pytest.mark.parametrize("missing", ["model.json", "weights.pt"])
    def test_a_file_is_missing(self, copy: Path, missing: str) -> None:
        (copy / missing).unlink()
        assert f"it has no {missing}" in self.refused(copy)

    def test_there_is_no_folder(self, tmp_path: Path) -> None:
        assert "is no ddlflow model" in self.refused(tmp_path / "nowhere")

    @pytest.mark.parametrize("text", ['{"format": 1, "colu', "[1]", "{}", ""])
    def test_the_description_is_damaged(self, copy: Path, text: str) -> None:
        (copy / "model.json").write_text(text)
        assert "is damaged" in self.refused(copy)

    @pytest.mark.parametrize("kept", [0, 100, 3000])
    def test_the_weights_are_cut_off(self, copy: Path, kept: int) -> None:
        (copy / "weights.pt").write_bytes((copy / "weights.pt").read_bytes()[:kept])
        assert "is damaged" in self.refused(copy)

    def test_the_weights_are_anothers(self, copy: Path) -> None:
        torch.save({"net.weight": torch.zeros(2)}, copy / "weights.pt")
        assert "is damaged" in self.refused(copy)

    def test_a_number_of_the_weights_is_changed(self, copy: Path) -> None:
        """PyTorch reads such a file without a word."""
        weights = bytearray((copy / "weights.pt").read_bytes())
        value = torch.load(copy / "weights.pt", weights_only=True)["net.layers.0.weight"]
        weights[weights.index(value.numpy().tobytes()) + 3] ^= 0x10
        (copy / "weights.pt").write_bytes(weights)
        torch.load(copy / "weights.pt", weights_only=True)
        assert "is damaged: model.json or weights.pt is not what was written" in self.refused(copy)

    def test_a_number_of_the_description_is_changed(self, copy: Path) -> None:
        described = json.loads((copy / "model.json").read_text())
        described["label_scale"]["mean"] += 1
        (copy / "model.json").write_text(json.dumps(described))
        assert "is damaged: model.json or weights.pt is not what was written" in self.refused(copy)

    @pytest.mark.parametrize(
        "change",
        [
            lambda described: described["columns"].pop("types"),
            lambda described: described["model"].update(use="mlpx"),
            lambda described: described["label_scale"].update(other=1),
            lambda described: described.update(model=[]),
            lambda described: described.pop("missing"),
        ],
        ids=["columns", "model", "label", "list", "missing"],
    )
    def test_a_description_that_is_none(self, copy: Path, change: Callable[[Any], Any]) -> None:
        described = json.loads((copy / "model.json").read_text())
        del described[SEAL]
        change(described)
        (copy / "model.json").write_text(json.dumps(described))
        assert "is damaged: " in self.refused(copy)

    def test_the_weights_hold_objects(self, copy: Path) -> None:
        torch.save({"net": torch.nn.Linear(1, 1)}, copy / "weights.pt")
        assert "is damaged" in self.refused(copy)

    @pytest.mark.parametrize(
        ("other", "advice"), [(1, "Install that version."), (-1, "Train the model again.")]
    )
    def test_it_is_of_another_ddlflow(self, copy: Path, other: int, advice: str) -> None:
        described = json.loads((copy / "model.json").read_text())
        described |= {"format": FORMAT + other, "ddlflow": "99.0"}
        (copy / "model.json").write_text(json.dumps(described))
        message = self.refused(copy, DdlflowError)
        assert "ddlflow 99.0" in message
        assert message.endswith(advice)


# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_mlflow_serves_the_same_predictions(trained: Callable[..., Any], tmp_path: Path) -> None:
    from ddlflow.tracking import open_run
    from ddlflow.tracking.log_model import log_model
    from ddlflow.tracking.send_model import mlflow  # which imports it without its warnings

    made = trained("multiclass")
    model = load_model(made.folder)
    frame = made.source.select(model.inputs).to_pandas()
    frame = frame.set_axis([f"r{k}" for k in range(len(frame))]).sample(frac=1, random_state=4)
    expected = model.predict_frame(frame)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with open_run(uri, tmp_path / "spool", experiment="served", name="m", tags={}) as run:
        model_uri = log_model(
            run,
            made.folder,
            example=frame.head(3),
            predictions=expected.head(3),
            digest=model.digest,
            wheel=wheel(tmp_path),
            pip_requirements=requirements({}),
        )
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        served = mlflow.pyfunc.load_model(model_uri)
        found = served.predict(frame)
    finally:
        mlflow.set_tracking_uri(before)
    pandas.testing.assert_frame_equal(pandas.DataFrame(found), expected)


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_a_row_is_predicted_alike_whatever_rows_are_beside_it(
    trained: Callable[..., Any], labels: str
) -> None:
    one = trained(labels)
    model = load_model(one.folder)
    (whole,) = one.source.combine_chunks().to_batches()
    wanted = model.predict(whole)
    for rows in (1, 3, 64, 131):
        parts = [model.predict(whole.slice(at, rows)) for at in range(0, whole.num_rows, rows)]
        assert pa.Table.from_batches(parts).combine_chunks().to_batches()[0].equals(wanted)
