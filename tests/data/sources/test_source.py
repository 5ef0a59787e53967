"""One table, four formats: the same rows; and each thing that is wrong is told in one sentence."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

TABLE = pa.table(
    {
        "y": [i % 3 for i in range(50)],
        "a": [i / 8 if i % 7 else None for i in range(50)],
        "n": list(range(50)),
        "city": [("Bonn", "Turin", None)[i % 3] for i in range(50)],
        "id": [10**15 + i for i in range(50)],
    }
)


def _csv(table: pa.Table, path: Path, header: bool = True) -> None:
    pa.csv.write_csv(table, path, pa.csv.WriteOptions(include_header=header))


def _jsonl(table: pa.Table, path: Path) -> None:
    import json

    rows = ({k: v for k, v in row.items() if v is not None} for row in table.to_pylist())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _gz(write: Callable[[pa.Table, Path], None]) -> Callable[[pa.Table, Path], None]:
    def written(table: pa.Table, path: Path) -> None:
        write(table, path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()

    return written


def _arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=7)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "t.parquet": lambda table, path: pq.write_table(table, path, row_group_size=7),
    "t.arrow": _arrow,
    "t.csv": _csv,
    "t.csv.gz": _gz(_csv),
    "t.jsonl": _jsonl,
    "t.ndjson.gz": _gz(_jsonl),
}


def _data(**values: Any) -> Data:
    return Data(**({"source": "x", "label": "y", "exclude": ["id"]} | values))


def _rows(location: str, root: Path, spec: Data | None = None) -> list[dict[str, Any]]:
    source = pickle.loads(pickle.dumps(open_source(location, spec or _data(), root)))
    names = list(source.schema)
    return [
        row
        for part in ranges(source)
        for batch in read(source.only(part), part, names)
        for row in batch.to_pylist()
    ]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 16)
    monkeypatch.setattr(text, "RANGE_BYTES", 300)
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    assert _rows(name, tmp_path) == TABLE.to_pylist()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", WRITERS)
def test_ranges_hold_every_row_once_in_pieces(tmp_path: Path, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    source = open_source(name, _data(), tmp_path)
    parts = ranges(source)
    assert parts == ranges(source)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert (len(parts) == 1) == name.endswith(".gz")
    found = []
    for part in parts:
        sizes = []
        for batch in read(source, part, ["n"]):
            sizes.append(batch.num_rows)
            found += batch.column(0).to_pylist()
        assert all(size == 16 for size in sizes[:-1])
        assert 0 < sizes[-1] <= 16
    assert found == list(range(50))


def test_a_row_group_larger_than_a_piece_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 16)
    for name in ("t.parquet", "t.arrow"):
        path = tmp_path / name
        if name == "t.parquet":
            pq.write_table(TABLE, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as out:
                out.write_table(TABLE)
        source = open_source(name, _data(), tmp_path)
        assert source.rows == 50
        assert [b.num_rows for b in read(source, ranges(source)[0], ["a"])] == [16, 16, 16, 2]


def test_no_header(tmp_path: Path) -> None:
    _csv(TABLE, tmp_path / "t.csv", header=False)
    found = _rows("t.csv", tmp_path, _data(header=False, label="c0", exclude=["c4"]))
    assert [list(row.values()) for row in found] == [list(r.values()) for r in TABLE.to_pylist()]
    assert list(found[0]) == ["c0", "c1", "c2", "c3", "c4"]


def test_whole_numbers_may_become_decimals_after_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "SCHEMA_BYTES", 16)
    (tmp_path / "t.csv").write_text("y;a\n" + "0;1\n" * 20 + "1;2.5\n")
    found = _rows("t.csv", tmp_path, _data(exclude=[], delimiter=";"))
    assert (found[0]["a"], found[-1]["a"]) == (1.0, 2.5)


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfy,a\r\n0,1\r\n\r\n1,2\r\n")
    assert _rows("t.csv", tmp_path) == [{"y": 0, "a": 1}, {"y": 1, "a": 2}]


def test_a_folder_with_keys(tmp_path: Path) -> None:
    for year, city in ((2023, "Bonn"), (2024, "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "t" / f"year={year}" / f"city={city}"
        folder.mkdir(parents=True)
        pq.write_table(TABLE.select(["y", "a"]).slice(0, 2), folder / "part.parquet")
    (tmp_path / "t" / "_SUCCESS").write_text("")
    (tmp_path / "t" / "README.md").write_text("about")
    source = open_source("t", _data(), tmp_path)
    assert list(source.schema.items())[2:] == [("year", pa.int64()), ("city", pa.string())]
    found = _rows("t", tmp_path)
    assert [(row["year"], row["city"]) for row in found] == [(2023, "Bonn")] * 2 + [
        (2024, None)
    ] * 2
    assert [row["year"] for row in _rows("t/year=*/*/*.parquet", tmp_path)] == [2023] * 2 + [
        2024
    ] * 2
    only_keys = next(read(source, ranges(source)[0], ["year"]))
    assert only_keys.column(0).to_pylist() == [2023, 2023]


def test_a_glob_takes_files_in_name_order(tmp_path: Path) -> None:
    for name, start in (("b.csv", 25), ("a.csv", 0)):
        _csv(TABLE.slice(start, 25), tmp_path / name)
    assert _rows("*.csv", tmp_path) == TABLE.to_pylist()
    assert _rows(str(tmp_path / "?.csv"), Path("/nowhere")) == TABLE.to_pylist()


@pytest.mark.parametrize("name", WRITERS)
def test_an_fsspec_url(tmp_path: Path, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
    try:
        assert _rows(f"memory://bucket/{name}", tmp_path) == TABLE.to_pylist()
        assert _rows("memory://bucket/*", tmp_path) == TABLE.to_pylist()
        assert _rows("memory://bucket", tmp_path) == TABLE.to_pylist()
    finally:
        memory.rm("/bucket", recursive=True)


def test_the_fingerprint_tells_a_change(tmp_path: Path) -> None:
    _csv(TABLE, tmp_path / "t.csv")
    before = open_source("t.csv", _data(), tmp_path).fingerprint
    assert open_source("t.csv", _data(), tmp_path).fingerprint == before
    assert open_source(str(tmp_path / "t.csv"), _data(), Path("/")).fingerprint == before
    _csv(TABLE.slice(1), tmp_path / "t.csv")
    assert open_source("t.csv", _data(), tmp_path).fingerprint != before


# ---- what is wrong -------------------------------------------------------------------------


def _wrong(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _rows(path.name, path.parent)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    assert "is empty" in _wrong(tmp_path / name, b"")


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.csv.gz", "t.ndjson.gz"])
@pytest.mark.parametrize("keep", [0.97, 0.5, 0.02])
def test_a_truncated_file(tmp_path: Path, name: str, keep: float) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    message = _wrong(tmp_path / name, whole[: int(len(whole) * keep)])
    assert "cannot be read" in message or "is empty" in message


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.csv.gz"])
def test_another_format_under_the_name(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in _wrong(tmp_path / name, b"hello, this is text\n" * 10)


def test_text_in_a_numeric_column_names_file_line_column_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "SCHEMA_BYTES", 40)
    monkeypatch.setattr(text, "BLOCK_BYTES", 40)
    monkeypatch.setattr(text, "RANGE_BYTES", 60)
    rows = ["0,0.25"] * 40
    rows[30] = "1,high"
    content = ("y,a\n" + "\n".join(rows) + "\n").encode()
    for name, data in (("t.csv", content), ("t.csv.gz", gzip.compress(content))):
        message = _wrong(tmp_path / name, data)
        assert "line 32: column a holds 'high', which is not a number" in message
    json_rows = ['{"y": 0, "a": 0.25}'] * 40
    json_rows[30] = '{"y": 1, "a": "high"}'
    message = _wrong(tmp_path / "t.jsonl", "\n".join(json_rows).encode())
    assert "line 31: column a holds 'high', where a number is expected" in message


def test_a_row_of_another_length(tmp_path: Path) -> None:
    message = _wrong(tmp_path / "t.csv", b"y,a\n0,1\n0,1,2\n")
    assert "line 3: 3 values, where 2 are expected: '0,1,2'." in message


def test_a_quote_in_the_midst_of_a_value_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 24)
    (tmp_path / "t.csv").write_bytes(b"y,a\n" + b'0,5" pipe\n1,"one, two"\n' * 20)
    assert [row["a"] for row in _rows("t.csv", tmp_path)] == ['5" pipe', "one, two"] * 20


def test_broken_json(tmp_path: Path) -> None:
    assert "cannot be read" in _wrong(tmp_path / "t.jsonl", b'{"y": 1}\n{"y": \n')


def test_doubled_columns(tmp_path: Path) -> None:
    assert "more than one column named y. Give each" in _wrong(tmp_path / "t.csv", b"y,y\n0,1\n")


def test_files_with_different_columns(tmp_path: Path) -> None:
    for first, second, words in (
        (["y", "a"], ["y", "n"], "lacks a and has n besides"),
        (["y", "a"], ["a", "y"], "another order"),
    ):
        _csv(TABLE.select(first), tmp_path / "a.csv")
        _csv(TABLE.select(second), tmp_path / "b.csv")
        with pytest.raises(DataError, match=rf"b\.csv differs from .*a\.csv: it .*{words}"):
            open_source("*.csv", _data(), tmp_path)
    pq.write_table(pa.table({"y": [1], "a": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": [1], "a": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has a as string and not int64"):
        open_source("*.parquet", _data(), tmp_path)


def test_number_types_may_differ_between_parquet_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": [1], "a": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": [1], "a": np.float32([2.5])}), tmp_path / "b.parquet")
    assert [row["a"] for row in _rows("*.parquet", tmp_path)] == [1, 2.5]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.xlsx").write_text("x")
    _csv(TABLE, tmp_path / "mixed.csv")
    pq.write_table(TABLE, tmp_path / "mixed.parquet")
    pq.write_table(TABLE.slice(0, 0), tmp_path / "norows.parquet")
    for location, words in (
        ("none.csv", "no such file or folder"),
        ("*.json", "no file matches"),
        ("empty", "holds no file"),
        ("t.xlsx", "no file name ends in a known extension"),
        ("mixed.*", r"several formats \(csv, parquet\)"),
        ("norows.parquet", "holds no row"),
        ("nosuch://bucket/x.csv", "cannot be listed"),
    ):
        with pytest.raises(DataError, match=words):
            open_source(location, _data(), tmp_path)
    assert open_source("mixed.*", _data(format="csv"), tmp_path).dialect.format == "csv"
    (tmp_path / "t.txt").write_text("y,a\n1,2\n")
    assert list(open_source("t.txt", _data(format="csv"), tmp_path).schema) == ["y", "a"]
