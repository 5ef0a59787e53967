"""Derived labels, features and splits, conditions and losses, from a source to its shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources import source as source_module
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Cv, Data

ROWS = 5_000
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 256)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Flights as a user has them: some were cancelled and have no delay."""
    random = np.random.default_rng(11)
    delay = random.normal(5, 30, ROWS).round()
    delay[random.random(ROWS) < 0.04] = np.nan
    air = random.uniform(30, 400, ROWS)
    air[random.random(ROWS) < 0.3] = np.nan
    carrier = random.choice(["AA", "UA", "B6"], ROWS).astype(object)
    carrier[random.random(ROWS) < 0.02] = None
    return pd.DataFrame(
        {
            "arr_delay": delay,
            "air": air,
            "carrier": carrier,
            "month": random.integers(1, 13, ROWS),
            "when": pd.Timestamp("2013-01-01")
            + pd.to_timedelta(random.integers(0, 8760, ROWS), "h"),
        }
    )


def written(frame: pd.DataFrame, root: Path, name: str) -> None:
    if name.endswith(".csv"):
        frame.to_csv(root / name, index=False)
    else:
        frame.to_parquet(root / name, row_group_size=900)


def made(root: Path, cv: Cv | None = None, labels: Any = "binary", **values: Any) -> Manifest:
    spec = Data(**({"source": "t.parquet", "label": "late"} | values))
    folder = root / "ds"
    return prepare(
        spec, labels, data_root=root, folder=folder, map=lambda f, i, _: map(f, i), cv=cv
    )


def rows_of(root: Path, manifest: Manifest, *splits: str) -> dict[str, np.ndarray]:
    parts = [map_shard(root / "ds" / s.path) for s in manifest.shards if s.split in splits]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["row"])
    return {name: values[order] for name, values in joined.items()}


FLIGHTS: dict[str, Any] = {
    "derive": {
        "late": "arr_delay > 15",
        "hour": 'hour("when")',
        "part": "case when month <= 9 then 'train' when month = 10 then 'validation' "
        "else 'test' end",
    },
    "where": "arr_delay is not null",
    "split": {"column": "part"},
    "exclude": ["month", "when"],
}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_label_a_feature_a_split_and_a_condition(
    tmp_path: Path, frame: pd.DataFrame, name: str
) -> None:
    written(frame, tmp_path, name)
    manifest = made(tmp_path, source=name, **FLIGHTS)
    known = frame["arr_delay"].notna().to_numpy()
    part = np.select([frame["month"] <= 9, frame["month"] == 10], SPLITS[:2], "test")
    for split in SPLITS:
        found = rows_of(tmp_path, manifest, split)
        at = np.flatnonzero(known & (part == split))
        assert np.array_equal(found["row"], at)  # numbers of the source's rows, dropped ones too
        assert np.array_equal(found["label"], (frame["arr_delay"].to_numpy()[at] > 15))
        assert manifest.feature_names == ("air", "hour")
        assert np.array_equal(
            found["features"][:, 0], frame["air"].to_numpy(np.float32)[at], equal_nan=True
        )
        assert np.array_equal(found["features"][:, 1], frame["when"].dt.hour.to_numpy()[at])
        code = frame["carrier"].map({"AA": 1, "B6": 2, "UA": 3}).fillna(0).to_numpy()
        assert np.array_equal(found["categories"][:, 0], code[at])
    assert manifest.label.classes == (False, True)
    assert manifest.dropped == {
        "where": int(np.count_nonzero(~known)),
        "label": 0,
        "missing": 0,
        "infinite": 0,
    }
    assert manifest.replaced == {
        "air": int(frame["air"].isna()[known].sum()),
        "carrier": int(frame["carrier"].isna()[known].sum()),
    }
    told = " ".join(manifest.warnings)
    assert "No features, as label late is computed from the same columns: arr_delay." in told
    assert f"Rows were dropped: {np.count_nonzero(~known)} as data.where does not hold." in told
    assert f"mean (air {manifest.replaced['air']:,}); by the bucket of unseen values" in told


def test_what_is_recorded_is_read_back(tmp_path: Path, frame: pd.DataFrame) -> None:
    written(frame, tmp_path, "t.parquet")
    manifest = made(tmp_path, **FLIGHTS)
    again = Manifest.load(tmp_path / "ds")
    for name in ("columns", "dropped", "dropped_columns", "replaced", "warnings", "shards"):
        assert getattr(again, name) == getattr(manifest, name)
    value = json.loads((tmp_path / "ds" / "manifest.json").read_text())
    assert value["columns"]["derive"] == {"hour": 'hour("when")'}
    assert value["columns"]["types"]["when"].startswith("timestamp[")


def test_the_same_rows_as_from_a_table_that_pandas_made(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    """Another hand derives the columns and leaves rows out; the splits are the same, row by row."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    written(frame, tmp_path / "ours", "t.parquet")
    ours = made(
        tmp_path / "ours",
        derive={"late": "arr_delay > 15"},
        where="air > 100",
        label_missing="drop",
        exclude=["when"],
    )
    left = frame[(frame["air"] > 100) & frame["arr_delay"].notna()].reset_index(names="number")
    left["late"] = left.pop("arr_delay") > 15
    written(left.drop(columns=["when", "number"]), tmp_path / "theirs", "t.parquet")
    theirs = made(tmp_path / "theirs")
    assert theirs.columns.numeric == ours.columns.numeric
    for split in SPLITS:
        one = rows_of(tmp_path / "ours", ours, split)
        other = rows_of(tmp_path / "theirs", theirs, split)
        assert np.array_equal(one.pop("row"), left["number"].to_numpy()[other.pop("row")])
        for name, values in one.items():
            assert np.array_equal(values, other[name], equal_nan=name == "features")


def test_a_missing_label_has_a_policy_of_its_own(tmp_path: Path, frame: pd.DataFrame) -> None:
    written(frame, tmp_path, "t.parquet")
    derive = {"late": "arr_delay > 15"}
    unknown, no_air = frame["arr_delay"].isna(), frame["air"].isna()
    with pytest.raises(DataError, match=rf"late \({unknown.sum()}\).*data\.label_missing: drop"):
        made(tmp_path, derive=derive)
    kept = made(tmp_path, derive=derive, label_missing="drop")
    assert kept.dropped["label"] == unknown.sum()
    assert kept.dropped_columns == {"label": {"late": unknown.sum()}}
    assert kept.dropped["missing"] == 0  # features are imputed all the same
    both = made(tmp_path, derive=derive, label_missing="drop", missing="drop")
    no_carrier = frame["carrier"].isna()
    assert both.dropped["label"] == unknown.sum()
    assert both.dropped["missing"] == ((no_air | no_carrier) & ~unknown).sum()
    assert both.dropped_columns["missing"] == {"air": no_air.sum(), "carrier": no_carrier.sum()}
    assert sum(s.rows for s in both.shards) == (~(unknown | no_air | no_carrier)).sum()


def test_rows_that_the_condition_leaves_out_may_hold_anything(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    odd = frame.copy()
    odd["air"] = odd["air"].where(odd["month"] != 3, np.inf)
    written(odd, tmp_path, "t.parquet")
    where = "month <> 3 and arr_delay is not null and air is not null and carrier is not null"
    derive = {"late": "arr_delay > 15"}
    manifest = made(tmp_path, derive=derive, where=where, missing="refuse", infinite="refuse")
    assert manifest.dropped["where"] == ROWS - sum(s.rows for s in manifest.shards)
    # A condition that is not known does not hold: SQL's rule, and pandas'.
    unknown = made(tmp_path, derive=derive, where="air > 100 and arr_delay < 1000")
    kept = (odd["air"] > 100) & (odd["arr_delay"] < 1000)
    assert np.array_equal(rows_of(tmp_path, unknown, *SPLITS)["row"], np.flatnonzero(kept))
    with pytest.raises(DataError, match=r"none is kept\. Correct data\.source, data\.where"):
        made(tmp_path, derive=derive, where="month > 12")


def test_a_test_source_is_derived_and_filtered_alike(tmp_path: Path, frame: pd.DataFrame) -> None:
    written(frame[:3000], tmp_path, "t.parquet")
    written(frame[3000:].drop(columns="month"), tmp_path, "late.csv")  # no feature reads month
    derive = {"late": "arr_delay > 15", "hour": 'hour("when")'}
    manifest = made(
        tmp_path,
        derive=derive,
        where="arr_delay is not null",
        exclude=["when", "month"],
        test_source="late.csv",
    )
    test = rows_of(tmp_path, manifest, "test")
    known = frame["arr_delay"][3000:].notna().to_numpy()
    assert np.array_equal(test["label"], (frame["arr_delay"][3000:].to_numpy() > 15)[known])
    assert np.array_equal(test["features"][:, 1], frame["when"][3000:].dt.hour.to_numpy()[known])
    written(frame[3000:].drop(columns="when"), tmp_path, "late.csv")
    with pytest.raises(DataError, match=r"derive\.hour.*column when, which the source lacks"):
        made(tmp_path, derive=derive, label_missing="drop", test_source="late.csv")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_folds_by_a_derived_column(tmp_path: Path, frame: pd.DataFrame, name: str) -> None:
    written(frame, tmp_path, name)
    derive = {"late": "arr_delay > 15", "quarter": "'Q' || quarter(\"when\")"}
    manifest = made(
        tmp_path,
        Cv(kind="group", by="quarter", folds=4),
        source=name,
        derive=derive,
        where="arr_delay is not null",
        exclude=["when", "quarter"],
    )
    quarters = frame["when"].dt.quarter.to_numpy()
    for fold in range(4):
        _, held_out = manifest.shards_of_fold(fold)
        rows = np.concatenate([map_shard(tmp_path / "ds" / s.path)["row"] for s in held_out])
        assert len({*quarters[rows]}) == 1


def test_a_regression_on_a_derived_label(tmp_path: Path, frame: pd.DataFrame) -> None:
    written(frame, tmp_path, "t.parquet")
    derive = {"speed": "try(ln(air))"}
    manifest = made(
        tmp_path, labels="regression", label="speed", derive=derive, where="air is not null"
    )
    assert "air" not in manifest.feature_names
    found = rows_of(tmp_path, manifest, *SPLITS)
    assert np.allclose(found["label"], np.log(frame["air"].to_numpy()[found["row"]]), rtol=1e-6)


def test_dates_are_features_by_their_parts(tmp_path: Path, frame: pd.DataFrame) -> None:
    written(frame, tmp_path, "t.csv")  # whose dates are found by their form
    manifest = made(
        tmp_path, source="t.csv", derive={"late": "arr_delay > 15"}, label_missing="drop"
    )
    parts = ("year", "month", "day", "weekday", "hour", "minute")
    assert manifest.feature_names == ("air", "month", *(f"when.{part}" for part in parts))
    found = rows_of(tmp_path, manifest, *SPLITS)
    when = frame["when"].iloc[found["row"]].dt
    wanted = [when.year, when.month, when.day, when.dayofweek + 1, when.hour, when.minute]
    assert np.array_equal(found["features"][:, 2:], np.stack(wanted, axis=1))
    assert manifest.constant == ("when.year", "when.minute")
