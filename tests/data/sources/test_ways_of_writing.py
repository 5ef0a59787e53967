"""The same table in the many ways that people write it: read right, or told what to set.

Each message's advice is followed, and then the table is read right. By pandas, which reads these
files by its own code.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddlflow.data.roles import choose
from ddlflow.data.sources import text
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

ROWS = 400


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every file has more rows than any of them."""
    monkeypatch.setattr(text, "RANGE_BYTES", 3000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 700)
    monkeypatch.setattr(text, "SCHEMA_BYTES", 900)


@pytest.fixture
def frame() -> pd.DataFrame:
    chance = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "price": (chance.normal(size=ROWS) * 5000 + 20_000).round(2),
            "count": chance.integers(0, 3_000_000, ROWS),
            "ort": chance.choice(["Köln", "Łódź", "Bonn", "Zürich"], ROWS),
            "y": chance.integers(0, 2, ROWS),
        }
    )


def _open(path: Path, **spec: Any) -> Any:
    return open_source(path.name, Data(**({"source": "x", "label": "y"} | spec)), path.parent)


def _read(path: Path, **spec: Any) -> pd.DataFrame:
    source = _open(path, **spec)
    return pd.DataFrame(
        [
            row
            for part in ranges(source)
            for batch in read(source.only(part), part, list(source.schema))
            for row in batch.to_pylist()
        ]
    )


def _refused(path: Path, **spec: Any) -> str:
    with pytest.raises(DataError) as caught:
        _read(path, **spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found[list(wanted)].astype(wanted.dtypes), wanted)


# ---- encodings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding",
    ["latin-1", "cp1252", "cp1250", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "gb18030"],
)
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl"])
def test_encodings(tmp_path: Path, frame: pd.DataFrame, encoding: str, kind: str) -> None:
    if encoding in ("latin-1", "cp1252"):
        frame = frame.replace("Łódź", "Málaga")
    if kind == "jsonl":
        written = frame.to_json(orient="records", lines=True, force_ascii=False)
    else:
        written = frame.to_csv(index=False)
    data = written.encode(encoding)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    _same(_read(path, encoding=encoding), frame)
    if not encoding.startswith("utf-8"):
        message = _refused(path)
        assert "Set data.encoding" in message
        if encoding in ("latin-1", "cp1252", "cp1250"):
            number = next(n for n, s in enumerate(written.split("\n"), 1) if not s.isascii())
            assert f"{path}, line {number}: byte 0x" in message


def test_bytes_that_are_no_characters_far_down(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame["ort"] = "Bonn"
    frame.loc[300, "ort"] = "Köln"
    path = tmp_path / "t.csv"
    path.write_bytes(frame.to_csv(index=False).encode("latin-1"))
    assert "t.csv, line 302: column ort is not UTF-8. Set data.encoding" in _refused(path)
    assert "t.csv, line 302: byte 0xf6 is not ascii" in _refused(
        path, encoding="iso2022_jp"
    ).replace("iso2022_jp", "ascii")
    _same(_read(path, encoding="latin-1"), frame)
    path.write_bytes(frame.to_csv(index=False).encode("latin-1").replace(b"\xf6", b"\x81"))
    message = _refused(path, encoding="cp1252")  # in a range that does not begin with the file
    assert "t.csv, line 302: byte 0x81" in message


# ---- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decimal", "thousands", "delimiter"),
    [
        (".", ",", ","), (",", None, ";"), (",", ".", ";"), (",", " ", "\t"), (".", "'", ","),
        (",", "\u202f", ";"), (",", None, ","),
    ],
)  # fmt: skip
def test_numbers_as_they_are_written_elsewhere(
    tmp_path: Path, frame: pd.DataFrame, decimal: str, thousands: str | None, delimiter: str
) -> None:
    frame.loc[[3, 250], "price"] = np.nan
    frame.loc[[4, 251], "price"] = -0.5

    def shown(value: float, digits: int) -> str:
        if np.isnan(value):
            return "NA"
        found = f"{value:,.{digits}f}".replace(".", "d").replace(",", thousands or "")
        return found.replace("d", decimal)

    other = frame.copy()
    other["price"] = [shown(value, 2) for value in frame["price"]]
    other["count"] = [shown(value, 0) for value in frame["count"]]
    path = tmp_path / "t.csv"
    other.to_csv(path, index=False, sep=delimiter)
    if thousands != "\u202f":  # one byte is all that pandas takes
        wanted = pd.read_csv(path, sep=delimiter, decimal=decimal, thousands=thousands)
        pd.testing.assert_frame_equal(wanted, frame)
    spec = {"decimal": decimal, "thousands": thousands, "delimiter": delimiter}
    _same(_read(path, **spec), frame)
    message = _refused(path, delimiter=delimiter)
    assert "t.csv, line 2: column price holds" in message
    said = [f'data.decimal: "{decimal}"'] * (decimal != ".")
    said += [f'data.thousands: "{thousands}"'] * (thousands is not None)
    assert f"Set {' and '.join(said)}" in message
    as_text = _read(path, delimiter=delimiter, text=["price", "count"], missing_values=["NA"])
    assert as_text["price"].fillna("NA").tolist() == other["price"].tolist()


def test_a_number_that_is_grouped_wrongly_is_none(tmp_path: Path) -> None:
    rows = ["1,234.5", "2,345,678", "-12", "12,34,567"] * 60
    for at in (3, 150):  # among the first rows, and further down
        some = [*rows[:at], "1,5", *rows[at:]]
        (tmp_path / "t.csv").write_text("y,a\n" + "".join(f'0,"{row}"\n' for row in some))
        message = _refused(tmp_path / "t.csv", thousands=",")
        assert f"line {at + 2}: column a holds '1,5'" in message


def test_a_decimal_comma_as_the_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y;a\n" + "".join(f"{i},5;{i}\n" for i in range(50)))
    message = _refused(tmp_path / "t.csv", delimiter=";")
    assert "line 2: column y holds '0,5'" in message
    assert 'data.decimal: ","' in message
    found = _read(tmp_path / "t.csv", delimiter=";", decimal=",")
    assert found["y"].tolist() == [i + 0.5 for i in range(50)]


# ---- lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lines_that_end_with_cr_alone(tmp_path: Path, frame: pd.DataFrame, kind: str) -> None:
    if kind == "csv":
        written = frame.to_csv(index=False)
    else:
        written = frame.to_json(orient="records", lines=True, force_ascii=False)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(written.replace("\n", "\r").encode())
    _same(_read(path), frame)
    broken = written.replace(str(frame["count"][350]), '"many"' if kind == "jsonl" else "many", 1)
    path.write_bytes(broken.replace("\n", "\r").encode())
    assert f"line {351 + (kind == 'csv')}: column count holds 'many'" in _refused(path)


@pytest.mark.parametrize("extra", [",", ",,,"])
def test_delimiters_at_the_end_of_every_line(
    tmp_path: Path, frame: pd.DataFrame, extra: str
) -> None:
    path = tmp_path / "t.csv"
    lines = [line + extra for line in frame.to_csv(index=False).splitlines()]
    path.write_text("\n".join(lines) + "\n")
    source = _open(path)
    assert list(source.schema) == list(frame)
    assert source.notes[0] == f"Column 5 of {4 + len(extra)} has no name and no value: left out."
    _same(_read(path), frame)
    lines[320] = lines[320].removesuffix(extra) + ",lost" + extra[1:]
    path.write_text("\n".join(lines) + "\n")
    assert "line 321: column Unnamed: 4 holds 'lost', has no name and is empty" in _refused(path)
    lines[0] = lines[0].replace("y,", "y,more", 1)
    path.write_text("\n".join(lines) + "\n")
    message = _refused(path)  # all but one value are missing: that is no number
    assert "line 321: column more holds 'lost', which is not a number" in message
    assert _read(path, text=["more"])["more"].dropna().tolist() == ["lost"]


def test_a_comment_above_the_header(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = tmp_path / "t.csv"
    path.write_text("# of the year 2024\n" + frame.to_csv(index=False))
    assert "line 2: 4 values, where 1 are expected: 'price,count,ort,y'. Is the first line" in (
        _refused(path)
    )


# ---- missing values and text ---------------------------------------------------------------


def test_words_that_pandas_takes_for_missing(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame["land"] = np.random.default_rng(0).choice(["NA", "ZA", "DE", "None", "null"], ROWS)
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    found = _read(path)
    wanted = pd.read_csv(path)
    assert found["land"].isna().tolist() == wanted["land"].isna().tolist()
    (note,) = _open(path).notes
    seen = sum(frame["land"][:40] == "NA")  # of some rows in the first block
    assert note.startswith("land: '")
    assert "'NA' " in note
    assert 'read as missing. Set data.missing_values: [""]' in note
    assert seen
    assert _read(path, missing_values=[""])["land"].tolist() == frame["land"].tolist()
    assert _open(path, missing_values=[""]).notes == ()
    mixed = _read(path, missing_values=["NA", "DE"])["land"]
    wanted = pd.read_csv(path, keep_default_na=False, na_values=["NA", "DE"])["land"]
    assert mixed.isna().tolist() == wanted.isna().tolist()


def test_a_number_that_stands_for_missing(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = tmp_path / "t.csv"
    frame["price"] = frame["price"].astype(object)
    frame.loc[[1, 2, 300], "price"] = ["-", "NA", "-"]
    frame.to_csv(path, index=False)
    message = _refused(path)
    assert "line 3: column price holds '-', where" in message
    assert 'data.missing_values: [pandas, "-"]' in message
    found = _read(path, missing_values=["pandas", "-"])
    assert np.flatnonzero(found["price"].isna()).tolist() == [1, 2, 300]


def test_a_category_that_becomes_text_far_down(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame["code"] = [f"{i % 7:03d}" for i in range(ROWS)]
    frame.loc[350:, "code"] = "A7"
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    message = _refused(path, categorical=["code"])
    assert "line 352: column code holds 'A7', which is not a whole number of 64 bits" in message
    assert "list code in data.text" in message
    for spec in ({"text": ["code"]}, {"text": ["code"], "categorical": ["code"]}):
        assert _read(path, **spec)["code"].tolist() == frame["code"].tolist()  # zeros stay


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_columns_read_as_text_in_every_format(
    tmp_path: Path, frame: pd.DataFrame, name: str
) -> None:
    frame["id"] = np.random.default_rng(1).integers(0, 9, ROWS)
    frame.loc[7:, "id"] += 2**62
    path = tmp_path / name
    if name == "t.csv":
        frame.to_csv(path, index=False)
    elif name == "t.jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path, index=False)
    source = _open(path, text=["id"])
    assert source.schema["id"] == pa.string()
    assert _read(path, text=["id"])["id"].tolist() == frame["id"].astype(str).tolist()
    with pytest.raises(DataError, match=r"data.text names column idd.*Did you mean 'id'"):
        choose(source.schema, Data(source="x", label="y", text=["idd"]), "binary")


def test_whole_numbers_beyond_64_bits(tmp_path: Path) -> None:
    ids = [2**63 + 5, 2**63 + 77, 2**64 - 3, 12, 9007199254740993]
    frame = pd.DataFrame({"y": [0, 1] * 5, "u": np.array(ids * 2, dtype=np.uint64)})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    for name in ("t.parquet", "t.csv"):
        assert _read(tmp_path / name, categorical=["u"])["u"].tolist() == [str(i) for i in ids * 2]
    found = _read(tmp_path / "t.jsonl", text=["u"])
    assert found["u"].tolist() == [str(i) for i in ids * 2]
    assert _read(tmp_path / "t.parquet")["u"].tolist() == ids * 2  # numbers: as they are


# ---- JSON ----------------------------------------------------------------------------------


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.json.gz"])
def test_a_json_array(tmp_path: Path, frame: pd.DataFrame, name: str, indent: int | None) -> None:
    frame["ort"] += '{"]\\,\n['
    data = json.dumps(_records(frame), indent=indent, ensure_ascii=False).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert len(ranges(_open(path))) == 1
    _same(_read(path), frame)
    rows = _records(frame)
    rows[333]["count"] = "many"
    data = json.dumps(rows, indent=indent).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert f"{name}, row 334: column count holds 'many'" in _refused(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "row 401 cannot be read: it does not end with ]"),
        (lambda data: data[:-30], "row 400 cannot be read"),
        (lambda data: b"[3" + data[data.index(b","):], "row 1: the JSON array holds 3, where an"),
    ],
)  # fmt: skip
def test_a_damaged_json_array(tmp_path: Path, frame: pd.DataFrame, damage: Any, said: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(damage(json.dumps(_records(frame)).encode()))
    assert said in _refused(path)


def test_keys_that_come_late_in_json(tmp_path: Path, frame: pd.DataFrame) -> None:
    """In a later file, and far down in one: no row's value is lost."""
    rows = _records(frame)
    for row in rows[:150]:
        del row["count"]
    for row in rows[:390]:
        del row["ort"]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, part in (("p0", rows[:150]), ("p1", rows[150:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name in ("one.jsonl", "p?.jsonl"):
        found = _read(tmp_path / name)
        assert found["count"].isna().sum() == 150
        assert found["count"][150:].tolist() == frame["count"][150:].tolist()
        assert found["ort"][390:].tolist() == frame["ort"][390:].tolist()
        _same(found, frame[["price", "y"]])


def test_json_numbers_that_become_decimals_in_a_later_file(tmp_path: Path) -> None:
    for name, value in (("p0", 1), ("p1", 2.5), ("p2", None)):
        rows = [{"y": i % 2, "key": value, "day": "2024-01-01"} for i in range(60)]
        rows[50]["day"] = "2024-01-01" if name == "p0" else "a day"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = _read(tmp_path / "p?.jsonl", exclude=["key"])
    assert found["key"].replace({np.nan: None}).tolist() == [1] * 60 + [2.5] * 60 + [None] * 60
    assert found["day"].tolist().count("a day") == 2


def test_a_file_of_json_that_was_rewritten_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for values in ([1, 2], ["u", "v"], [1.5, None]):
        rows = [{"y": i % 2, "a": values[i % 2]} for i in range(100)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert [row["a"] for row in _read(path).replace({np.nan: None}).to_dict("records")] == (
            values * 50
        )


def test_values_of_several_types_in_json(tmp_path: Path, frame: pd.DataFrame) -> None:
    rows = _records(frame)
    for at, value in ((7, 1.5), (310, "many"), (311, True), (312, None), (313, 15)):
        rows[at]["count"] = value
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = _refused(path)
    assert "t.jsonl, line 311: column count holds 'many', where a number is expected" in message
    found = _read(path, text=["count"])
    before = str(frame["count"][309])
    assert found["count"][309:314].tolist() == [before, "many", "true", None, "15"]
    source = _open(path, exclude=["count"])
    batches = (batch for part in ranges(source) for batch in read(source, part, ["y"]))
    assert [y for batch in batches for y in batch.column(0).to_pylist()] == frame["y"].tolist()


# ---- types of several files ----------------------------------------------------------------


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow"])
def test_a_column_without_values_in_one_file(
    tmp_path: Path, frame: pd.DataFrame, kind: str, empty: int
) -> None:
    frames = [frame[:200].copy(), frame[200:].copy()]
    frames[empty]["ort"] = None
    for number, each in enumerate(frames):
        path = tmp_path / f"p{number}.{kind}"
        table = pa.Table.from_pandas(each, preserve_index=False)
        if kind == "csv":
            each.to_csv(path, index=False)
        elif kind == "jsonl":
            each.to_json(path, orient="records", lines=True)
        elif kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table)
    found = _read(tmp_path / f"*.{kind}")
    wanted = pd.concat(frames, ignore_index=True)
    assert found["ort"].fillna("-").tolist() == wanted["ort"].fillna("-").tolist()
    source = _open(tmp_path / f"*.{kind}")
    assert source.schema["ort"] == pa.string()
    for part in ranges(source):
        assert {b.schema.field("ort").type for b in read(source, part, ["ort"])} == {pa.string()}


def test_text_as_arrow_views(tmp_path: Path) -> None:
    words = pa.array(["u", None, "a long text that is not kept in the view itself"] * 50)
    table = pa.table({"y": [0, 1, 1] * 50, "s": words.cast(pa.string_view())})
    path = str(tmp_path / "t.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=11)
    found = _read(tmp_path / "t.arrow")["s"]
    assert found.where(found.notna(), None).tolist() == words.to_pylist()
    assert _open(tmp_path / "t.arrow").schema["s"] == pa.string()


def test_folders_of_large_numbers(tmp_path: Path, frame: pd.DataFrame) -> None:
    for key in ("18446744073709551615", "12345678901234567890"):
        folder = tmp_path / "t" / f"h={key}" / "zip=01234"
        folder.mkdir(parents=True)
        frame.to_parquet(folder / "p.parquet", index=False)
    found = _read(tmp_path / "t")
    assert set(found["h"]) == {"18446744073709551615", "12345678901234567890"}
    assert set(found["zip"]) == {1234}
    assert set(_read(tmp_path / "t", text=["zip"])["zip"]) == {"01234"}
