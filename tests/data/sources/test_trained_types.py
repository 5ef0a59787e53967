"""Types that are known: written down, read back, and what they make of later sources."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.columns import Category, category_codes
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.data.sources.trained_types import as_parsed, plain, read_back, written
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

TYPES = [
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int16(), pa.large_string()),
    pa.decimal128(20, -2),
    pa.date32(),
    pa.date64(),
    pa.time64("ns"),
    pa.timestamp("ms"),
    pa.timestamp("us", "Europe/Rome"),
    pa.duration("s"),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_a_type_comes_back_from_its_text(type_: pa.DataType) -> None:
    assert read_back(written(type_)) == plain(type_)


WORDS = Category("zip", "text", ("01234", "12345", "99999"))
NUMBERS = Category("code", "text", ("12", "7", "A7"))
WHOLE = Category("year", "integer", (7, 2019, 2020))


@pytest.mark.parametrize(
    ("category", "array", "codes"),
    [
        (WORDS, pa.array(["99999", "01234", "1234", None]).cast(pa.large_string()), [3, 1, 0, 0]),
        (WORDS, pa.array(["99999", "01234"]).dictionary_encode(), [3, 1]),
        (WORDS, pa.array([np.nan, np.nan]), [0, 0]),  # as pandas has a column without a value
        (WORDS, pa.nulls(2), [0, 0]),
        (NUMBERS, pa.array([7, 12, 13], pa.uint8()), [2, 1, 0]),
        (NUMBERS, pa.array([7.0, np.nan]), [2, 0]),
        (NUMBERS, pa.array([Decimal("12.00")]), [1]),
        (WHOLE, pa.array(["2020", " 2019.0", "007", "2021", None]), [3, 2, 1, 0, 0]),
        (WHOLE, pa.array([2020.0, None]), [3, 0]),
    ],
)
def test_another_type_that_means_one_thing_alone(
    category: Category, array: pa.Array, codes: list[int]
) -> None:
    assert category_codes(array, category).tolist() == codes


@pytest.mark.parametrize(
    ("category", "array", "said"),
    [
        (WORDS, pa.array([1234]), r"zip is of type int64.*had text \('01234', '12345', '99999'\)"),
        (WORDS, pa.array([1234.0]), "zip is of type double"),
        (NUMBERS, pa.array([1.5]), "code is of type double"),
        (Category("flag", "text", ("False", "True")), pa.array([True]), "flag is of type bool"),
        (Category("flag", "text", ("0", "1")), pa.array([True]), "flag is of type bool"),
        (NUMBERS, pa.array([datetime(2020, 1, 1)]), r"code is of type timestamp\[us\]"),
        (WHOLE, pa.array(["A7", "2020"]), "year holds something else than whole numbers: 'A7'"),
    ],
)
def test_what_could_mean_several_things_is_refused(
    category: Category, array: pa.Array, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        category_codes(array, category)
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20, unique=True))
def test_whole_numbers_find_their_usual_spelling_whatever_their_type(numbers: list[int]) -> None:
    """Against Python's own str and dict."""
    words = tuple(sorted(map(str, numbers[: len(numbers) // 2 + 1])))
    codes = {word: code for code, word in enumerate(words, 1)}
    wanted = [codes.get(str(number), 0) for number in numbers]
    category = Category("n", "text", words)
    for type_ in (pa.int32(), pa.float64(), pa.decimal128(12, 2)):
        assert (
            category_codes(pa.array(numbers, pa.int32()).cast(type_), category).tolist() == wanted
        )


FRAME = pd.DataFrame(
    {
        "zip": ["01234", "02345", "12345", "99999"] * 40,
        "flag": ["True", "False"] * 80,
        "n": [1, 2, 3, 4] * 40,
        "b": [0.5, 1.5, 2.5, 3.5] * 40,
    }
)
KNOWN = as_parsed(
    {"zip": pa.string(), "flag": pa.large_string(), "n": pa.int64(), "b": pa.float32()}, ["n"]
)


def _rows(path: Path, **known: Any) -> list[dict[str, Any]]:
    source = open_source(str(path), Data(source="x", label="y"), Path("/"), **known)
    return [
        row
        for part in ranges(source)
        for batch in read(source, part, ["zip", "flag", "n", "b"])
        for row in batch.to_pylist()
    ]


def test_a_csv_is_parsed_by_known_types(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    assert _rows(tmp_path / "t.csv")[0]["zip"] == 1234  # a guess, as the first training makes it
    found = pd.DataFrame(_rows(tmp_path / "t.csv", known=KNOWN))
    pd.testing.assert_frame_equal(found, FRAME.assign(n=FRAME["n"].astype(str)))


def test_json_is_parsed_by_known_types_where_it_does_not_tell(tmp_path: Path) -> None:
    days = FRAME.assign(zip="2020-01-01")  # which would be taken for a timestamp
    days.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    found = pd.DataFrame(_rows(tmp_path / "t.jsonl", known=KNOWN))
    pd.testing.assert_frame_equal(found, days)


def _prepared(folder: Path, test: str) -> dict[str, Any]:
    data = Data(source="t.parquet", label="y", test_source=test)
    manifest = prepare(
        data,
        "binary",
        data_root=folder,
        folder=folder / f"made-{test}",
        map=lambda function, items, _: map(function, items),
    )
    (shard,) = manifest.shards_of("test")
    columns = map_shard(folder / f"made-{test}" / shard.path)
    order = np.argsort(columns["row"])
    return {name: np.array(values)[order] for name, values in columns.items()}


def test_the_test_source_is_read_by_the_sources_types(tmp_path: Path) -> None:
    """Zip codes and flags written to CSV and JSON give the shards that Parquet gives."""
    frame = FRAME.assign(y=(FRAME["zip"] == "01234").map({True: "yes", False: "no"}))
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    wanted = _prepared(tmp_path, "t.parquet")
    assert set(np.unique(wanted["categories"])) == {1, 2, 3, 4}
    for name in ("t.csv", "t.jsonl"):
        found = _prepared(tmp_path, name)
        assert {key: values.tolist() for key, values in found.items()} == {
            key: values.tolist() for key, values in wanted.items()
        }


def test_a_test_source_whose_numbers_were_text_is_refused(tmp_path: Path) -> None:
    frame = FRAME.assign(y=[0, 1] * 80)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    table = pa.Table.from_pandas(frame.assign(zip=frame["zip"].astype(int)), preserve_index=False)
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"data.test_source other.parquet: Column zip.*int64"):
        _prepared(tmp_path, "other.parquet")
    assert not (tmp_path / "made-other.parquet").exists()


def test_the_columns_remember_types_and_what_was_rare(tmp_path: Path) -> None:
    frame = FRAME.assign(y=[0, 1] * 80)
    frame.loc[:7, "zip"] = None
    frame.loc[8:11, "zip"] = ["a", "b", "c", "d"]
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    manifest = prepare(
        Data(source="t.parquet", label="y", categorical=["n"]),
        "binary",
        data_root=tmp_path,
        folder=tmp_path / "made",
        map=lambda function, items, _: map(function, items),
    )
    columns = json.loads((tmp_path / "made" / "manifest.json").read_text())["columns"]
    assert columns["types"] == {"zip": "string", "flag": "string", "n": "int64", "b": "double"}
    assert manifest.columns.parsed() == {
        "zip": pa.string(),
        "flag": pa.string(),
        "n": pa.string(),
        "b": pa.float64(),
    }
    assert [c.rest for c in manifest.categories] == pytest.approx([12 / 160, 0, 0])
