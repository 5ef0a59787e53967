"""Derived columns: bound to a source's columns, in order, evaluated where the source is read."""

import pickle
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.roles import choose
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources.derive import WHERE, bind, needed, only, sources_of
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

SCHEMA = {
    "arr_delay": pa.float64(),
    "distance": pa.int64(),
    "carrier": pa.string(),
    "when": pa.timestamp("ms", "UTC"),
    "day": pa.date32(),
    "Case": pa.int64(),
    "case": pa.int64(),
}


def data(**values: Any) -> Data:
    return Data(**({"source": "t.parquet", "label": "late", "dates": "refuse"} | values))


def test_columns_may_read_derived_ones_in_any_order() -> None:
    spec = data(
        derive={"far_late": "late and far", "late": "arr_delay > 15", "far": "distance > 500"},
        where="arr_delay is not null",
    )
    derived = bind(SCHEMA, spec)
    names = [column.name for column in derived]
    assert names.index("far_late") > max(names.index("late"), names.index("far"))
    assert {column.type for column in derived} == {pa.bool_()}
    found, own = needed(["far_late", "carrier"], derived)
    assert (own, len(found)) == (["carrier", "distance", "arr_delay"], 3) or set(own) == {
        "carrier",
        "arr_delay",
        "distance",
    }
    assert sources_of("far_late", derived) == {"arr_delay", "distance"}
    assert sources_of("carrier", derived) == {"carrier"}
    assert pickle.loads(pickle.dumps(derived)) == derived


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"derive": {"carrier": "distance"}},
            r"derive\.carrier: the source has a column",
        ),
        ({"derive": {"": "distance"}}, r"without a name"),
        ({"derive": {"late": "ar_delay > 15"}}, r"column ar_delay.*Did you mean 'arr_delay'\?"),
        ({"derive": {"late": "Arr_Delay > 15"}}, r"column Arr_Delay.*Did you mean 'arr_delay'\?"),
        ({"derive": {"late": 'carrier = "UA"'}}, r"column UA.*A text stands in single quotes"),
        ({"derive": {"late": "late > 1"}}, r"derive\.late needs itself: late reads late"),
        ({"derive": {"a": "b + 1", "b": "a + 1"}}, r"needs itself: . reads . reads ."),
        ({"derive": {"a": '"Case" + "case"'}}, r"Case, case apart, which differ by case alone"),
        ({"derive": {"late": "year(carrier)"}}, r"derive\.late is 'year\(carrier\)': No function"),
        ({"derive": {"late": "current_date"}}, r"column current_date"),
        ({"derive": {"x": "when > '2013-01-01'"}}, r"word of SQL, stands in double quotes"),
        ({"where": "distance"}, r"data\.where is 'distance', which is of type int64.*condition"),
        ({"where": "distnce > 3"}, r"data\.where.*Did you mean 'distance'\?"),
        ({"derive": {"a": '"data.where"'}, "where": "distance > 1"}, r"column data\.where"),
        ({"derive": {"x": "day.hour"}}, r"derive\.x is 'day\.hour'"),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        bind(SCHEMA, data(**values))
    assert "\n" not in str(error.value)


def test_only_the_expressions_that_some_columns_need() -> None:
    spec = data(
        derive={
            "late": "arr_delay > 15",
            "far": "distance > 500",
            "x": 'far and "when" is not null',
        },
        where="arr_delay is not null",
    )
    assert only(spec, ["x", "carrier"], where=False).derive.keys() == {"far", "x"}
    assert only(spec, ["x"], where=False).where is None
    assert only(spec, ["late"], where=True).where == "arr_delay is not null"
    lacking = {name: type_ for name, type_ in SCHEMA.items() if name != "arr_delay"}
    assert len(bind(lacking, only(spec, ["x"], where=False))) == 2


# ---- read ----------------------------------------------------------------------------------


ROWS = 3_000


def table() -> pa.Table:
    random = np.random.default_rng(3)
    return pa.table(
        {
            "x": pa.array(random.normal(size=ROWS), mask=random.random(ROWS) < 0.1),
            "n": random.integers(0, 10**6, ROWS),
            "year": random.integers(1990, 2030, ROWS),
            "month": random.integers(1, 13, ROWS),
            "t": random.choice(["a", "b,", 'c"', "NA"], ROWS),
        }
    )


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "*.parquet"])
def test_read_gives_what_pandas_computes_in_every_format(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 256)
    rows = table()
    frame = rows.to_pandas()
    if name == "*.parquet":  # pandas' own: a file with gaps in whole numbers has them as doubles
        pq.write_table(rows.slice(0, 1000), tmp_path / "0.parquet")
        gaps = rows.slice(1000).to_pandas().astype({"n": "float64", "month": "float64"})
        gaps.to_parquet(tmp_path / "1.parquet", row_group_size=300)
    elif name == "t.parquet":
        pq.write_table(rows, tmp_path / name, row_group_size=700)
    elif name == "t.csv":
        pa.csv.write_csv(rows, tmp_path / name)
    elif name == "t.jsonl":
        frame.to_json(tmp_path / name, orient="records", lines=True, double_precision=15)
    else:
        with pa.ipc.new_file(tmp_path / name, rows.schema) as out:
            out.write_table(rows, max_chunksize=400)
    derive = {
        "high": "x > 0.5",
        "first": "make_date(cast(year as bigint), cast(month as bigint), 1)",
        "digit": "cast(n % 10 as integer)",
        "code": "lpad(cast(cast(n as bigint) as varchar), 7, '0')",
        "both": "high and digit > 4",
    }
    spec = data(source=name, label="high", derive=derive)
    source = open_source(name, spec, tmp_path)
    assert [*source.schema][-5:] == ["high", "first", "digit", "code", "both"]
    wanted = ["both", "code", "first", "high", "digit"]
    found = pa.Table.from_batches(
        batch for part in ranges(source) for batch in read(source, part, wanted)
    ).to_pandas()
    x, n = frame["x"], frame["n"]
    high = [None if np.isnan(v) else v > 0.5 for v in x]
    assert found["high"].tolist() == high
    assert found["digit"].tolist() == (n % 10).tolist()
    assert found["code"].tolist() == [f"{v:07d}" for v in n]
    both = [
        False if v % 10 <= 4 else h  # SQL's: unknown and false is false
        for h, v in zip(high, n, strict=True)
    ]
    assert found["both"].tolist() == both
    first = [date(y, m, 1) for y, m in zip(frame["year"], frame["month"], strict=True)]
    assert found["first"].tolist() == first


def test_only_the_needed_columns_of_a_file_are_read(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    spec = data(derive={"late": "x > 0", "other": "n + 1"})
    source = open_source("t.parquet", spec, tmp_path)
    assert needed(["late"], source.derived)[1] == ["x"]
    (batch,) = read(source, ranges(source)[0], ["late"])
    assert batch.schema.names == ["late"]


def test_whole_numbers_of_csv_stay_whole_for_an_expression(tmp_path: Path) -> None:
    """As features they are parsed as float64; 7 as a text has to stay 7 all the same."""
    (tmp_path / "t.csv").write_text("zip,y,m\n10001,2013,1\n7030,2014,12\n")
    derive = {"code": "cast(zip as varchar)", "d": "make_date(y, m, 1)", "late": "m > 6"}
    source = open_source("t.csv", data(source="t.csv", derive=derive), tmp_path)
    (batch,) = read(source, ranges(source)[0], ["code", "d"])
    assert batch.column("code").to_pylist() == ["10001", "7030"]
    assert batch.column("d").to_pylist() == [date(2013, 1, 1), date(2014, 12, 1)]


# ---- dates ---------------------------------------------------------------------------------

MOMENTS = [datetime(2013, 1, 6, 23, 45, 12, tzinfo=UTC), None, datetime(1969, 2, 28, tzinfo=UTC)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_become_parts_as_pandas_has_them(
    tmp_path: Path, unit: str, zone: str | None
) -> None:
    when = pa.array([None if m is None else m.replace(tzinfo=None) for m in MOMENTS] * 100)
    when = when.cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    pq.write_table(pa.table({"when": when, "late": [0, 1, 0] * 100}), tmp_path / "t.parquet")
    spec = data(dates="parts")
    source = open_source("t.parquet", spec, tmp_path)
    roles = choose(source.schema, spec, "binary", derived=source.derived)
    names = ["year", "month", "day", "weekday", "hour", "minute"]
    assert roles.numeric == tuple(f"when.{name}" for name in names)
    (batch,) = read(source, ranges(source)[0], list(roles.numeric))
    stamps = pd.to_datetime(pd.Series(MOMENTS * 100), utc=True)
    for name in names:
        attribute = "dayofweek" if name == "weekday" else name
        wanted = getattr(stamps.dt, attribute) + (name == "weekday")
        got = batch.column(f"when.{name}").to_pandas()
        pd.testing.assert_series_equal(got, wanted, check_names=False, check_dtype=False)
    number = data(dates="number")
    source = open_source("t.parquet", number, tmp_path)
    assert choose(source.schema, number, "binary", derived=source.derived).numeric == (
        "when.seconds",
    )
    (batch,) = read(source, ranges(source)[0], ["when.seconds"])
    assert batch.column(0).type == pa.float64()
    assert batch.column(0).to_pylist()[:3] == [1_357_515_912.0, None, -26_524_800.0]


@pytest.mark.parametrize(
    ("type_", "value", "wanted"),
    [
        (pa.date32(), date(2024, 2, 29), {"year": 2024, "month": 2, "day": 29, "weekday": 4}),
        (pa.date64(), date(2024, 2, 29), {"year": 2024, "month": 2, "day": 29, "weekday": 4}),
        (pa.time32("s"), time(7, 8, 9), {"hour": 7, "minute": 8}),
        (pa.time32("ms"), time(7, 8, 9), {"hour": 7, "minute": 8}),
        (pa.time64("us"), time(7, 8, 9), {"hour": 7, "minute": 8}),
        (pa.time64("ns"), time(7, 8, 9), {"hour": 7, "minute": 8}),
    ],
)
def test_days_and_times_of_day(
    tmp_path: Path, type_: pa.DataType, value: Any, wanted: dict[str, int]
) -> None:
    rows = pa.table({"w": pa.array([value, None], type_), "late": [0, 1]})
    with pa.ipc.new_file(tmp_path / "t.arrow", rows.schema) as out:
        out.write_table(rows)
    spec = data(source="t.arrow", dates="parts")
    source = open_source("t.arrow", spec, tmp_path)
    names = [f"w.{name}" for name in wanted]
    assert list(choose(source.schema, spec, "binary", derived=source.derived).numeric) == names
    (batch,) = read(source, ranges(source)[0], names)
    assert batch.to_pylist() == [
        dict(zip(names, wanted.values(), strict=True)),
        dict.fromkeys(names),
    ]


def roles_of(**values: Any) -> Any:
    spec = data(**{"label": "y", "dates": "parts", **values})
    schema = {**SCHEMA, "y": pa.int64()}
    derived = bind(schema, spec)
    full = schema | {column.name: column.type for column in derived}
    return choose(full, spec, "binary", derived=derived)


def test_dates_are_named_left_out_and_made_categories_by_part_or_as_a_whole() -> None:
    day = [f"day.{part}" for part in ("year", "month", "day", "weekday")]
    assert list(roles_of(features=["day"]).numeric) == day
    assert roles_of(features=["when.hour", "distance"]).numeric == ("when.hour", "distance")
    assert list(roles_of(features=["day"], exclude=["day.year"]).numeric) == day[1:]
    left = roles_of(exclude=["when", "day.day", "Case", "case", "carrier"])
    assert left.numeric == ("arr_delay", "distance", "day.year", "day.month", "day.weekday")
    assert roles_of(features=["day"], categorical=["day.month"]).categorical == ("day.month",)
    derived = roles_of(features=["local"], derive={"local": "\"when\" at time zone 'Asia/Tokyo'"})
    assert "local.hour" in derived.numeric
    with pytest.raises(DataError, match=r"Feature when is of type timestamp.*data\.dates to parts"):
        roles_of(features=["when"], dates="refuse")


def test_a_part_does_not_take_the_name_of_a_column() -> None:
    schema = {"d": pa.date32(), "d.year": pa.int64(), "y": pa.int64()}
    with pytest.raises(DataError, match=r"has a column d\.year already.*List d in data\.exclude"):
        bind(schema, data(label="y", dates="parts"))
    assert bind(schema, data(label="y", dates="parts", exclude=["d"])) == ()


# ---- what tells the label ------------------------------------------------------------------


def test_what_the_label_is_computed_from_is_no_feature_by_default() -> None:
    derive = {
        "late": "arr_delay > 15",
        "speed": "distance / arr_delay",
        "far": "distance > 500",
        "worse": "late or far",
    }
    roles = roles_of(label="late", derive=derive, where="distance is not null")
    assert roles.left_out == ("arr_delay", "speed", "worse")
    assert not {"arr_delay", "speed", "worse", WHERE} & {*roles.features}
    assert {"distance", "far"} <= {*roles.features}  # where reads distance, which tells nothing
    assert "arr_delay, speed, worse" in roles.notes[0]
    assert "list them in data.features" in roles.notes[0].lower()


def test_a_label_of_the_source_is_told_by_what_is_computed_from_it() -> None:
    roles = roles_of(derive={"double": "y * 2", "far": "distance > 500"})
    assert roles.left_out == ("double",)
    assert "far" in roles.features


def test_who_lists_a_telling_feature_gets_it_and_a_word() -> None:
    derive = {"late": "arr_delay > 15"}
    roles = roles_of(label="late", derive=derive, features=["arr_delay", "distance"])
    assert roles.numeric == ("arr_delay", "distance")
    assert roles.telling == ("arr_delay",)
    assert "arr_delay" in roles.notes[0]
    assert roles_of(features=["distance"]).notes == []


def test_a_split_by_an_expression_keeps_what_it_reads() -> None:
    derive = {"late": "arr_delay > 15", "part": "if(distance > 3, 'train', 'test')"}
    roles = roles_of(label="late", derive=derive, split={"column": "part"})
    assert roles.split == "part"
    assert "distance" in roles.features
    assert "part" not in roles.features
