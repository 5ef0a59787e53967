"""A model is applied to tables of other formats and types than the one it was trained on.

Zip codes and flags are words that look like numbers: each format guesses differently what they are.
"""

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.data.sources.opening import open_source
from ddlflow.errors import DataError
from ddlflow.infer.model import load_model
from ddlflow.infer.predict import SUCCESS, infer
from ddlflow.spec.pipeline import Data
from ddlflow.train.saved.description import SEAL

from .conftest import Trained, fit, in_turn

ROWS = 1200


def frame(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    zips = random.choice(["01234", "02345", "12345", "99999"], ROWS)
    return pd.DataFrame(
        {
            "id": [f"{k:06d}" for k in range(ROWS)],
            "zip": zips,
            "flag": random.choice(["True", "False"], ROWS),
            "on": random.random(ROWS) < 0.5,
            "b": random.normal(size=ROWS),
            "year": random.integers(2019, 2023, ROWS),
            "y": np.isin(zips, ["01234", "02345"]).astype(int),
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("types")
    frame().to_parquet(root / "train.parquet", index=False)
    spec = Data(source="train.parquet", label="y", exclude=["id"], categorical=["year"])
    return fit(root, pa.Table.from_pandas(frame()), spec, "binary", epochs=10)


def applied(
    model: Trained, path: Path, out: Path, keys: tuple[str, ...] = ("id",), **more: Any
) -> pd.DataFrame:
    infer(
        model.folder,
        str(path),
        out,
        keys=keys,
        data_root=model.root,
        threads=1,
        map_over=in_turn,
        **more,
    )
    return pd.concat(map(pd.read_parquet, sorted(out.glob("part-*"))), ignore_index=True)


def to_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def to_jsonl(table: pd.DataFrame, path: Path) -> None:
    table.to_json(path, orient="records", lines=True)


def to_large(table: pd.DataFrame, path: Path) -> None:
    found = pa.Table.from_pandas(table, preserve_index=False)
    wide = pa.schema(
        [(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in found.schema]
    )
    pyarrow.feather.write_feather(found.cast(wide), path)


def to_categories(table: pd.DataFrame, path: Path) -> None:
    pq.write_table(
        pa.Table.from_pandas(table.astype({"zip": "category", "flag": "category"})),
        path,
        row_group_size=100,
    )


def to_others(table: pd.DataFrame, path: Path) -> None:
    """Numbers of other widths, decimals, and years as text."""
    found = pa.Table.from_pandas(table, preserve_index=False)
    for name, type_ in (("on", pa.uint8()), ("b", pa.decimal128(30, 20)), ("year", pa.string())):
        index = found.schema.get_field_index(name)
        found = found.set_column(index, name, found[name].cast(type_, safe=False))
    pq.write_table(found, path)


WRITERS = {
    "t.csv": to_csv,
    "t.csv.gz": to_csv,
    "t.jsonl": to_jsonl,
    "large.arrow": to_large,
    "categories.parquet": to_categories,
    "others.parquet": to_others,
    "polars.parquet": lambda table, path: polars.from_pandas(table).write_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_another_format_gives_the_same_predictions(
    model: Trained, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 256)
    monkeypatch.setattr(text, "RANGE_BYTES", 5000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    new = frame(seed=1)
    WRITERS[name](new.drop(columns="y"), tmp_path / name)
    found = applied(model, tmp_path / name, tmp_path / "out")
    assert found["id"].tolist() == new["id"].tolist()  # zeros and all
    assert (found["prediction"] == new["y"]).all()
    expected = load_model(model.folder).predict_frame(new)
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4, atol=1e-6)
    counts = json.loads((tmp_path / "out" / SUCCESS).read_text())["columns"]
    assert counts["zip"] == counts["year"] == {"missing": 0, "unseen": 0}
    assert counts["b"] == {"missing": 0, "infinite": 0}


def test_a_name_that_tells_no_format_is_read_as_the_training_was(
    model: Trained, tmp_path: Path
) -> None:
    """The pipeline says `format: jsonl`, as its files end in .json; so do the new ones."""
    shutil.copytree(model.folder, tmp_path / "model")
    described = json.loads((tmp_path / "model/model.json").read_text())
    described["data"]["format"] = "jsonl"
    del described[SEAL]
    (tmp_path / "model/model.json").write_text(json.dumps(described))
    like = replace(model, folder=tmp_path / "model")
    new = frame(seed=1)
    new.to_json(tmp_path / "new.json", orient="records", lines=True)
    new.to_parquet(tmp_path / "new.parquet")
    found = [applied(like, tmp_path / f"new.{end}", tmp_path / end) for end in ("json", "parquet")]
    assert (found[0]["prediction"] == new["y"]).all()
    assert (found[1]["prediction"] == new["y"]).all()


def test_a_gap_in_whole_numbers_makes_them_decimals_in_csv(model: Trained, tmp_path: Path) -> None:
    """2020 is written as 2020.0 by pandas where one value of the column is missing."""
    new = frame(seed=2)
    new.loc[3, "year"] = None
    new.to_csv(tmp_path / "t.csv", index=False)
    assert "2020.0" in (tmp_path / "t.csv").read_text()
    applied(model, tmp_path / "t.csv", tmp_path / "out")
    counts = json.loads((tmp_path / "out" / SUCCESS).read_text())["columns"]
    assert counts["year"] == {"missing": 1, "unseen": 0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zip": lambda t: t["zip"].astype(int)}, r"zip is of type int64.*text \('01234'"),
        (
            {"flag": lambda t: t["flag"] == "True"},
            r"flag is of type bool.*text \('False', 'True'\)",
        ),
        (
            {"b": lambda t: pd.to_datetime("2020-01-01")},
            r"b holds.*timestamp.*numbers are expected",
        ),
        ({"year": lambda t: pd.to_datetime("2020-01-01")}, "year holds something else than whole"),
    ],
)
def test_a_type_that_does_not_tell_is_refused_before_anything_is_written(
    model: Trained, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    frame().assign(**changes).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=said) as caught:
        applied(model, tmp_path / "t.parquet", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=said):
        load_model(model.folder).predict_frame(pd.read_parquet(tmp_path / "t.parquet"))


def test_keys_are_copied_as_they_stand(
    model: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text far down, zeros, words that mean missing, and features that are keys as well."""
    monkeypatch.setattr(text, "SCHEMA_BYTES", 2000)
    monkeypatch.setattr(source_module, "PIECE_ROWS", 100)
    new = frame(seed=3)
    new["id"] = [*map(str, range(ROWS - 4)), "X1", "NA", "007", ""]
    new["b"] = [f"{value:.3f}0" for value in new["b"]]
    new.loc[5, "zip"] = "NA"
    new.to_csv(tmp_path / "t.csv", index=False)
    found = applied(model, tmp_path / "t.csv", tmp_path / "out", keys=("zip", "id", "b"))
    for name in ("id", "zip", "b"):
        assert found[name].tolist() == new[name].tolist()
    counts = json.loads((tmp_path / "out" / SUCCESS).read_text())["columns"]
    assert counts["zip"] == {"missing": 1, "unseen": 0}

    alone = applied(model, tmp_path / "t.csv", tmp_path / "alone")  # which the model does not read
    assert alone["id"].tolist() == new["id"].tolist()
    assert alone["probability"].equals(found["probability"])

    wanted = new.assign(zip=new["zip"].replace("NA", None), b=new["b"].astype(float))
    expected = load_model(model.folder).predict_frame(wanted)
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4, atol=1e-6)


def test_what_the_model_has_not_seen_is_counted_and_said(model: Trained, tmp_path: Path) -> None:
    new = frame(seed=4)
    new["zip"] = [value.removeprefix("0") for value in new["zip"]]  # the zeros were lost before
    new.loc[new["zip"] == "12345", "zip"] = "12345.0"
    new.loc[:9, "flag"] = None
    new.loc[:4, "b"] = [np.nan, np.inf, -np.inf, np.nan, 1e300]
    new.to_parquet(tmp_path / "t.parquet")
    applied(model, tmp_path / "t.parquet", tmp_path / "out")
    done = json.loads((tmp_path / "out" / SUCCESS).read_text())
    lost = int((new["zip"].str.len() != 5).sum())
    assert done["columns"]["zip"] == {"missing": 0, "unseen": lost}
    assert done["columns"]["flag"] == {"missing": 10, "unseen": 0}
    assert done["columns"]["b"] == {"missing": 2, "infinite": 3}
    assert lost > ROWS / 2
    (note,) = done["notes"]
    assert f"Column zip: of 1,200 values {lost} unseen, where in training 0.0% were." in note
    (tmp_path / "out" / SUCCESS).unlink()  # a command that finds the files done says the same
    applied(model, tmp_path / "t.parquet", tmp_path / "out")
    assert json.loads((tmp_path / "out" / SUCCESS).read_text()) == done


def test_a_word_that_the_model_has_learnt_is_not_missing(tmp_path: Path) -> None:
    """NA is Namibia in Parquet, and in the CSV that the model is applied to; n/a is missing."""
    random = np.random.default_rng(6)
    country = random.choice(["NA", "ZA", "DE"], ROWS)
    made = pd.DataFrame({"country": country, "b": random.normal(size=ROWS)})
    made["y"] = (country == "NA").astype(int)
    made.to_parquet(tmp_path / "t.parquet", index=False)
    spec = Data(source="t.parquet", label="y")
    trained = fit(tmp_path, pa.Table.from_pandas(made), spec, "binary", epochs=10)
    made.loc[:4, "country"] = "n/a"
    made.loc[5:7, "b"] = np.nan  # written as nothing, which is missing
    made.to_csv(tmp_path / "t.csv", index=False)
    for number, keys in enumerate([(), ("country",)]):
        out = tmp_path / f"out{number}"
        found = applied(trained, tmp_path / "t.csv", out, keys=keys)
        assert (found["prediction"] == made["y"])[5:].all()
        counts = json.loads((out / SUCCESS).read_text())["columns"]
        assert counts["country"] == {"missing": 5, "unseen": 0}
        assert counts["b"] == {"missing": 3, "infinite": 0}
    assert found["country"].tolist() == made["country"].tolist()


def test_what_is_derived_from_a_learnt_word_is_not_missing(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    country = random.choice(["NA", "ZA", "DE"], ROWS)
    made = pd.DataFrame({"id": range(ROWS), "country": country, "b": random.normal(size=ROWS)})
    made["y"] = (country == "NA").astype(int)
    made.to_parquet(tmp_path / "t.parquet", index=False)
    derive = {"mark": "country || '-' || (b > 0)"}
    spec = Data(source="t.parquet", label="y", derive=derive, exclude=["id"])
    trained = fit(tmp_path, pa.Table.from_pandas(made), spec, "binary", epochs=3)
    made.to_csv(tmp_path / "t.csv", index=False)
    found = applied(trained, tmp_path / "t.csv", tmp_path / "out", keys=("id", "mark"))
    assert found["mark"].tolist() == [
        f"{c}-{str(b > 0).lower()}" for c, b in zip(country, made["b"], strict=True)
    ]
    expected = load_model(trained.folder).predict_frame(made)
    assert found["probability"].equals(expected["probability"])
    counts = json.loads((tmp_path / "out" / SUCCESS).read_text())["columns"]
    assert counts["mark"] == counts["country"] == {"missing": 0, "unseen": 0}


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.arrow"])
def test_whole_numbers_that_float64_would_blur_are_exact_in_every_format(
    tmp_path: Path, name: str
) -> None:
    random = np.random.default_rng(8)
    made = pd.DataFrame({"id": range(ROWS), "n": random.integers(2**62, 2**62 + 100, ROWS)})
    made["y"] = (made["n"] > 2**62 + 50).astype(int)
    made.to_parquet(tmp_path / "t.parquet", index=False)
    spec = Data(source="t.parquet", label="y", exclude=["id"])
    trained = fit(tmp_path, pa.Table.from_pandas(made), spec, "binary", epochs=3)
    expected = load_model(trained.folder).predict_frame(made)
    assert expected["probability"].nunique() > 50
    {"t.csv": to_csv, "t.jsonl": to_jsonl, "t.arrow": to_large}[name](made, tmp_path / name)
    found = applied(trained, tmp_path / name, tmp_path / "out")
    assert found["probability"].equals(expected["probability"])
    texts = load_model(trained.folder).predict_frame(made.astype({"n": str}))
    assert texts.equals(expected)
    gap = made.astype({"n": str})
    gap.loc[3, "n"] = ""
    gap.to_csv(tmp_path / "gap.csv", index=False)
    found = applied(trained, tmp_path / "gap.csv", tmp_path / "gap")
    assert found["probability"].drop(3).equals(expected["probability"].drop(3))


def test_days_whole_numbers_with_gaps_and_categories_of_polars(tmp_path: Path) -> None:
    """Each as pandas or Polars writes it: days in JSON as text, 3 beside a gap in CSV as 3.0."""
    random = np.random.default_rng(9)
    made = pd.DataFrame({"id": range(ROWS), "word": random.choice(["u", "v"], ROWS)})
    made["day"] = [date.fromordinal(int(k)) for k in random.integers(737000, 738000, ROWS)]
    made["n"] = pd.array(random.integers(0, 5, ROWS), dtype="Int64")
    made.loc[::7, "n"] = None
    made["y"] = (made["word"] == "u").astype(int)
    made.to_parquet(tmp_path / "t.parquet", index=False)
    derive = {"more": "n + 1", "text": "n || word", "late": "dayofyear(day)"}
    spec = Data(source="t.parquet", label="y", exclude=["id"], derive=derive)
    trained = fit(tmp_path, pa.Table.from_pandas(made), spec, "binary", epochs=3)
    model = load_model(trained.folder)
    expected = model.predict_frame(made)
    categories = polars.from_pandas(made).with_columns(polars.col("word").cast(polars.Categorical))
    assert model.predict_frame(categories).equals(expected)

    made.astype({"n": float}).to_csv(tmp_path / "t.csv", index=False)
    made.to_json(tmp_path / "t.jsonl", orient="records", lines=True, date_format="iso")
    assert "T00:00:00.000" in (tmp_path / "t.jsonl").read_text()
    categories.write_ndjson(tmp_path / "p.jsonl")
    categories.write_ipc(tmp_path / "p.arrow")
    for name in ("t.csv", "t.jsonl", "p.jsonl", "p.arrow"):
        found = applied(trained, tmp_path / name, tmp_path / f"out-{name}")
        assert found["probability"].equals(expected["probability"]), name
    made.assign(n=[1.5, *made["n"][1:]]).to_csv(tmp_path / "half.csv", index=False)
    with pytest.raises(DataError, match=r"column n holds '1.5', which is not a whole number"):
        applied(trained, tmp_path / "half.csv", tmp_path / "half")


def test_seconds_of_a_csv_are_those_of_json_and_of_fractions(tmp_path: Path) -> None:
    """pandas writes 2020-01-01T10:00:00.000 into JSON, where a CSV has 2020-01-01 10:00:00."""
    random = np.random.default_rng(10)
    hours = pd.to_timedelta(random.integers(0, 10**7, ROWS), unit="s")
    made = pd.DataFrame({"id": range(ROWS), "time": pd.Timestamp("2020-01-01") + hours})
    made["y"] = (made["time"].dt.hour > 11).astype(int)
    made.to_csv(tmp_path / "t.csv", index=False)
    spec = Data(source="t.csv", label="y", exclude=["id"])
    source = open_source("t.csv", spec, tmp_path)
    (part,) = source_module.ranges(source)
    read = source_module.read(source, part, ["id", "time", "y"])
    trained = fit(tmp_path, pa.Table.from_batches(read), spec, "binary", epochs=3)
    expected = load_model(trained.folder).predict_frame(made)
    made.to_json(tmp_path / "t.jsonl", orient="records", lines=True, date_format="iso")
    later = made.assign(time=made["time"] + pd.Timedelta("250ms"))
    later.to_csv(tmp_path / "fraction.csv", index=False)
    for name in ("t.csv", "t.jsonl", "fraction.csv"):
        found = applied(trained, tmp_path / name, tmp_path / f"out-{name}")
        assert found["probability"].equals(expected["probability"]), name
