"""A model whose features are derived: applied to tables that have what these are derived from."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.sources.derive_dates import without_zones
from ddlflow.errors import DataError
from ddlflow.infer.model import load_model
from ddlflow.infer.predict import infer
from ddlflow.spec.pipeline import Data

from .conftest import Trained, fit, in_turn

ROWS = 900
DATA: dict[str, Any] = {
    "label": "late",
    "derive": {
        "late": "delay > 15",
        "rush": "clock in (8, 9, 17, 18)",
        "clock": 'hour("when")',
        "area": "substr(zip, 1, 2)",
    },
    "where": "delay is not null",
}
FEATURES = ["distance", "rush", "area", "when"]
INPUTS = ["distance", "when", "zip"]


def flights() -> pa.Table:
    random = np.random.default_rng(9)
    when = pd.Timestamp("2013-01-01") + pd.to_timedelta(random.integers(0, 365 * 24, ROWS), "h")
    zips = random.choice(["07030", "07102", "10001", "11430"], ROWS)
    distance = random.integers(100, 3000, ROWS)
    delay = 30 * np.isin(when.hour, [8, 9, 17, 18]) + np.where(zips < "1", 10, -10)
    delay = delay + random.normal(0, 2, ROWS)
    delay[random.random(ROWS) < 0.05] = np.nan
    return pa.table(
        {
            "distance": distance,
            "when": when,
            "zip": zips,
            "delay": pa.array(delay, from_pandas=True),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root, source = tmp_path_factory.mktemp("derived"), flights()
    pq.write_table(source, root / "t.parquet", row_group_size=200)
    return fit(root, source, Data(source="t.parquet", features=FEATURES, **DATA), "binary")


def predicted(made: Trained, location: str, out: Path, **more: Any) -> pd.DataFrame:
    infer(
        made.folder,
        location,
        out,
        keys=more.pop("keys", []),
        data_root=made.root,
        threads=1,
        map_over=in_turn,
    )
    return pd.concat([pd.read_parquet(path) for path in sorted(out.glob("part-*.parquet"))])


def test_the_model_learnt_what_the_expressions_tell(made: Trained, tmp_path: Path) -> None:
    found = predicted(made, "t.parquet", tmp_path / "out", keys=["delay"])
    assert len(found) == ROWS  # rows that the condition left out are predicted as well
    known = found[found["delay"].notna()]
    right = known["prediction"].astype(bool) == (known["delay"] > 15)
    assert right.mean() > 0.93
    assert sorted(load_model(made.folder).inputs) == INPUTS


def test_a_number_is_no_time_and_a_time_no_number(made: Trained, tmp_path: Path) -> None:
    """pandas' to_json writes times as milliseconds since 1970, of which any unit could be meant."""
    later = made.source.to_pandas()
    said = "reads column when as timestamp.*here it is of type int64.*Give the column as timestamp"
    later.to_json(tmp_path / "u.jsonl", orient="records", lines=True)
    with pytest.raises(DataError, match=said):
        predicted(made, str(tmp_path / "u.jsonl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = load_model(made.folder)
    with pytest.raises(DataError, match=said):
        model.predict_frame(later.assign(when=later["when"].astype("int64")))
    nothing = model.predict_frame(later.assign(when=np.nan))  # a column without any value
    assert nothing.equals(model.predict_frame(later.assign(when=pd.NaT)))

    derive = {"long": "distance > 1000", "late": DATA["derive"]["late"]}
    data = DATA | {"derive": derive}
    spec = Data(source="t.parquet", features=["distance", "long"], **data)
    pq.write_table(made.source, tmp_path / "t.parquet")
    whole = fit(tmp_path, made.source, spec, "binary")
    later["distance"] = later["when"]
    with pytest.raises(DataError, match=r"long reads column distance as int64.*of type timestamp"):
        load_model(whole.folder).predict_frame(later)


def test_what_is_neither_true_nor_false_is_said(made: Trained, tmp_path: Path) -> None:
    source = made.source.append_column("fast", pa.array([True, False, None] * (ROWS // 3)))
    pq.write_table(source, tmp_path / "t.parquet")
    data = DATA | {"derive": DATA["derive"] | {"far": "fast and distance > 1000"}}
    whole = fit(
        tmp_path, source, Data(source="t.parquet", features=["distance", "far"], **data), "binary"
    )
    model, frame = load_model(whole.folder), source.to_pandas()
    expected = model.predict_frame(frame)
    numbers = frame["fast"].astype("float64")
    assert model.predict_frame(frame.assign(fast=numbers)).equals(expected)
    with pytest.raises(DataError, match=r"far reads column fast as true or false.* holds 2\.0"):
        model.predict_frame(frame.assign(fast=numbers * 2))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2013-05-01T10:00:00Z", "without a zone are expected. Write the column in UTC"),
        ("2013-05-01 10:00:00+02:00", "without a zone are expected. Write the column in UTC"),
    ],
)
def test_a_zone_in_a_csv_of_a_model_without_is_said(
    made: Trained, tmp_path: Path, written: str, said: str
) -> None:
    text = f"distance,when,zip\n100,2013-05-01 10:00:00,07030\n100,{written},07030\n"
    (tmp_path / "u.csv").write_text(text)
    with pytest.raises(DataError, match=rf"line 3: column when holds .*{said}"):
        predicted(made, str(tmp_path / "u.csv"), tmp_path / "out")


@pytest.mark.parametrize("name", ["u.parquet", "u.csv", "u.jsonl"])
def test_a_source_in_another_format_without_what_the_label_is_made_of(
    made: Trained, tmp_path: Path, name: str
) -> None:
    whole = predicted(made, "t.parquet", tmp_path / "whole")
    later = made.source.drop_columns(["delay"]).select(["zip", "when", "distance"])
    if name == "u.csv":
        pa.csv.write_csv(later, tmp_path / name)  # zip codes look like numbers here
    elif name == "u.jsonl":
        later.to_pandas().to_json(tmp_path / name, orient="records", lines=True, date_format="iso")
    else:
        pq.write_table(later, tmp_path / name, row_group_size=333)
    found = predicted(made, str(tmp_path / name), tmp_path / "out", keys=["when"])
    assert np.array_equal(found["prediction"], whole["prediction"])
    assert np.allclose(found["probability"], whole["probability"], rtol=1e-4)


def test_a_frame_gives_what_the_source_gives(made: Trained, tmp_path: Path) -> None:
    model = load_model(made.folder)
    frame = made.source.drop_columns(["delay"]).to_pandas()
    whole = predicted(made, "t.parquet", tmp_path / "whole")
    found = model.predict_frame(frame)
    assert np.allclose(found["probability"], whole["probability"], rtol=1e-4)
    gaps = frame.astype({"distance": "float64"})
    gaps.loc[3, "when"] = pd.NaT  # missing, so the mean hour
    again = model.predict_frame(gaps)
    same = np.isclose(again["probability"], found["probability"], rtol=1e-4)
    assert same[np.arange(ROWS) != 3].all()


def test_what_is_missing_or_of_another_kind_is_said(made: Trained, tmp_path: Path) -> None:
    model = load_model(made.folder)
    frame = made.source.to_pandas()
    with pytest.raises(DataError, match=r"reads column when, which the source lacks"):
        model.predict_frame(frame.drop(columns="when"))
    with pytest.raises(DataError, match=r"reads column zip as text, and here it is of type int64"):
        model.predict_frame(frame.assign(zip=frame["zip"].astype(int)))
    pq.write_table(made.source.drop_columns(["when"]), tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r"column when, which the source lacks"):
        predicted(made, str(tmp_path / "u.parquet"), tmp_path / "out")
    taken = made.source.append_column("rush", pa.array([True] * ROWS))
    pq.write_table(taken, tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r"derive\.rush: the source has a column rush already"):
        predicted(made, str(tmp_path / "u.parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_example_of_a_model_with_dates_fits_a_signature(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """MLflow knows no zones, days and times of day: what is logged is read as what it was."""
    import mlflow.models

    root, rows = tmp_path_factory.mktemp("dates"), 300
    moments = [datetime(2013, 1, 1) + timedelta(hours=7 * i) for i in range(rows)]
    source = pa.table(
        {
            "zoned": pa.array(moments, pa.timestamp("ns", "America/New_York")),
            "day": pa.array([m.date() for m in moments], pa.date32()),
            "clock": pa.array([m.time() for m in moments], pa.time64("us")),
            "short": pa.array([m.time() for m in moments], pa.time32("s")),
            "y": [m.hour > 11 for m in moments],
        }
    )
    pq.write_table(source, root / "t.parquet")
    made = fit(root, source, Data(source="t.parquet", label="y", rare_below=1), "binary")
    model = load_model(made.folder)
    (batch,) = source.select(model.inputs).combine_chunks().to_batches()
    example = without_zones(batch).to_pandas()
    signature = mlflow.models.infer_signature(example)
    mlflow.models.validate_schema(example, signature.inputs)
    assert model.predict_frame(example).equals(model.predict(batch).to_pandas())
