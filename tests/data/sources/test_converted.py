"""Text is parsed once and kept as Parquet: the same values, from nothing that is half or old."""

import errno
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddlflow.data.sources import converted, text
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources.converted import place_of
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source, ranges, read
from ddlflow.errors import DataError, DdlflowError, InputError
from ddlflow.spec.pipeline import Data
from ddlflow.store.folder import FolderStore
from ddlflow.store.store import open_store

ROWS = 611
COLUMNS = ["n", "a", "when", "day", "utc", "flag", "word"]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 50)
    monkeypatch.setattr(text, "RANGE_BYTES", 9000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(text, "SCHEMA_BYTES", 3000)


@pytest.fixture
def frame() -> pd.DataFrame:
    number = pd.Series(range(ROWS))
    start = pd.Timestamp("2024-01-31 23:59:58")
    return pd.DataFrame(
        {
            "y": number % 2,
            "n": number * 10**13,
            "a": (number / 7).where(number % 5 != 0),
            "when": [(start + pd.Timedelta(seconds=i)).isoformat(" ") for i in range(ROWS)],
            "day": [(start + pd.Timedelta(days=i)).date().isoformat() for i in range(ROWS)],
            "utc": [(start + pd.Timedelta(hours=i)).isoformat() + "Z" for i in range(ROWS)],
            "flag": [("true", "false", "")[i % 3] for i in range(ROWS)],
            "word": [("Köln", 'a "quoted", word', "two\nlines", "")[i % 4] for i in range(ROWS)],
        }
    )


def _open(path: Path, **spec: Any) -> Source:
    return open_source(path.name, Data(**({"source": "x", "label": "y"} | spec)), path.parent)


def _keep(source: Source, folder: Path, names: list[str] = COLUMNS) -> Source:
    return source.converted(FolderStore(folder), names)


def _table(source: Source, names: list[str]) -> pa.Table:
    found = [b for part in ranges(source) for b in read(source.only(part), part, names)]
    return pa.Table.from_batches(found)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(frame: pd.DataFrame, path: Path) -> Path:
    if ".json" in path.name:
        frame.to_json(path, orient="records", lines=True, force_ascii=False, double_precision=15)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_values_and_types_are_those_of_the_text(
    tmp_path: Path, frame: pd.DataFrame, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _open(_write(frame, tmp_path / name))
    plain = _table(source, COLUMNS)
    kept = _keep(source, tmp_path / "kept")
    for _ in range(2):
        found = _table(kept, COLUMNS)
        assert found.schema.equals(plain.schema)
        assert found.equals(plain)
        monkeypatch.setattr(text, "batches", None)  # from here on nothing is parsed
    assert len(_files(tmp_path / "kept")) == len(ranges(source))
    wanted = frame["a"].to_numpy()
    np.testing.assert_allclose(plain["a"].to_numpy(), wanted, rtol=0 if ".csv" in name else 1e-14)
    assert (len(ranges(source)) > 3) == (not name.endswith(".gz"))


def test_fewer_columns_are_read_of_what_is_kept_and_more_are_parsed_again(
    tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _open(_write(frame, tmp_path / "t.csv"))
    parsed: list[list[str]] = []
    batches = text.batches

    def counted(*args: Any, **kwargs: Any) -> Any:
        parsed.append(list(kwargs["columns"]))
        return batches(*args, **kwargs)

    monkeypatch.setattr(text, "batches", counted)
    parts = len(ranges(source))
    _table(_keep(source, tmp_path / "kept", ["n", "a"]), ["a"])
    assert parsed == [["a", "n"]] * parts
    _table(_keep(source, tmp_path / "kept", ["n"]), ["n"])
    assert len(parsed) == parts
    _table(_keep(source, tmp_path / "kept", ["word"]), ["word"])
    assert parsed[parts:] == [["word", "a", "n"]] * parts  # what was kept is not lost
    _table(_keep(source, tmp_path / "kept", ["n", "word"]), ["word", "n"])
    assert len(parsed) == 2 * parts


def test_a_column_of_another_type_is_parsed_again(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = _write(frame, tmp_path / "t.csv")
    numbers = _table(_keep(_open(path), tmp_path / "kept", ["n"]), ["n"])
    texts = _table(_keep(_open(path, text=["n"]), tmp_path / "kept", ["n"]), ["n"])
    assert texts["n"].to_pylist() == [str(n) for n in frame["n"]]
    assert numbers["n"].to_pylist() == [float(n) for n in frame["n"]]
    as_category = _keep(_open(path, categorical=["n"]), tmp_path / "kept", ["n"])
    assert _table(as_category, ["n"])["n"].to_pylist() == frame["n"].tolist()


def test_what_was_kept_of_a_source_as_it_was_before_goes(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    path, other = _write(frame, tmp_path / "t.csv"), _write(frame.head(400), tmp_path / "u.csv")

    def kept(path: Path, **spec: Any) -> set[Any]:
        source = _open(path, **spec)
        place = place_of(FolderStore(tmp_path / "kept"), source.address, source.fingerprint)
        return set(_table(source.converted(place, ["n"]), ["n"])["n"].to_pylist())

    assert len(kept(path)) == ROWS
    first = set(_files(tmp_path / "kept"))
    assert len(kept(other)) == 400
    others = set(_files(tmp_path / "kept")) - first
    assert len(kept(path)) == ROWS
    assert set(_files(tmp_path / "kept")) == first | others
    _write(frame.assign(n=-1), path)
    assert kept(path) == {-1.0}
    left = set(_files(tmp_path / "kept"))
    assert left & (first | others) == others
    assert kept(path, text=["n"]) == {"-1"}
    assert set(_files(tmp_path / "kept")) & (left | others) == others


def test_what_is_not_read_to_its_end_is_not_kept(tmp_path: Path, frame: pd.DataFrame) -> None:
    source = _keep(_open(_write(frame, tmp_path / "t.csv")), tmp_path / "kept")
    rows = read(source, ranges(source)[0], ["n"])
    next(rows)
    assert len(_files(tmp_path / "kept")) == 1  # under a temporary name
    rows.close()  # type: ignore[attr-defined]
    assert _files(tmp_path / "kept") == []
    assert _table(source, ["n"])["n"].to_pylist() == frame["n"].tolist()


def test_a_value_that_does_not_fit_is_told_with_its_line_and_nothing_is_kept_of_its_range(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    path = _write(frame, tmp_path / "t.csv")
    lines = path.read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("0,5000000000000000,"))
    lines[at] = lines[at].replace("0,5000000000000000,", "0,many,")
    path.write_text("\n".join(lines))
    kept = _keep(_open(path), tmp_path / "kept", ["n"])
    with pytest.raises(DataError, match=rf"t\.csv, line {at + 1}: column n holds 'many'"):
        _table(kept, ["n"])
    assert len(_files(tmp_path / "kept")) < len(ranges(kept))
    with pytest.raises(DataError, match=f"line {at + 1}: column n holds 'many'"):
        _table(kept, ["n"])
    # A column that nobody reads may hold anything.
    assert _table(_keep(_open(path), tmp_path / "kept", ["a"]), ["a"]).num_rows == ROWS


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.ENOSPC, DdlflowError, "No space left on device. Make room there and run the same"),
        (errno.EACCES, InputError, "cannot be written: Permission denied. Name a storage folder"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_told_in_one_line(
    tmp_path: Path,
    frame: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    error: type[DdlflowError],
    said: str,
) -> None:
    source = _keep(_open(_write(frame, tmp_path / "t.csv")), tmp_path / "kept")

    class Full(pq.ParquetWriter):
        def write_batch(self, *_: Any, **__: Any) -> None:
            raise OSError(number, __import__("os").strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(converted.pq, "ParquetWriter", Full)
        with pytest.raises(error, match=said) as told:
            _table(source, ["n"])
    assert "\n" not in str(told.value)
    assert str(tmp_path / "kept") in str(told.value)
    assert _files(tmp_path / "kept") == []
    assert _table(source, ["n"])["n"].to_pylist() == frame["n"].tolist()


def test_what_is_damaged_is_told_and_parsed_again(tmp_path: Path, frame: pd.DataFrame) -> None:
    source = _keep(_open(_write(frame, tmp_path / "t.csv")), tmp_path / "kept", ["n"])
    plain = _table(source, ["n"])
    flipped, cut, empty, *_ = _files(tmp_path / "kept")
    data = bytearray(flipped.read_bytes())
    data[len(data) // 3] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-9])
    empty.write_bytes(b"")
    with pytest.raises(DdlflowError, match=r"is damaged and was removed: .*Run the same") as told:
        _table(source, ["n"])
    assert not isinstance(told.value, InputError)
    assert "\n" not in str(told.value)
    assert _table(source, ["n"]).equals(plain)


def test_workers_that_parse_one_range_at_once_keep_it_once(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    source = _keep(_open(_write(frame, tmp_path / "t.csv")), tmp_path / "kept")
    parts = ranges(source)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: list(read(source, part, COLUMNS)), parts * 4))
    assert len(_files(tmp_path / "kept")) == len(parts)
    assert found[: len(parts)] == found[len(parts) : 2 * len(parts)]


def test_small_ranges_are_parsed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand small files do not become twenty thousand."""
    monkeypatch.setattr(text, "RANGE_BYTES", 64 << 20)
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("y,n\n" + f"0,{number}\n" * 100)
    source = _keep(_open(tmp_path / "*.csv"), tmp_path / "kept", ["n"])
    assert _table(source, ["n"])["n"].to_pylist() == [n for n in range(5) for _ in range(100)]
    assert _files(tmp_path / "kept") == []


def test_a_range_of_blank_lines_and_one_without_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y,n\n" + "0,1\n" * 30 + "\n" * 30_000 + "1,2\n")
    source = _keep(_open(tmp_path / "t.csv"), tmp_path / "kept", ["n"])
    for _ in range(2):
        assert _table(source, ["n"])["n"].to_pylist() == [1.0] * 30 + [2.0]


def test_json_whose_rows_lack_keys(tmp_path: Path) -> None:
    rows = [{"y": i % 2, **({"n": i} if i % 3 else {}), **({"z": i} if i > 900 else {})}
            for i in range(1000)]  # fmt: skip
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    source = _keep(_open(path), tmp_path / "kept", ["z", "n"])
    for _ in range(2):
        found = _table(source, ["n", "z"]).to_pylist()
        assert found == [{"n": row.get("n"), "z": row.get("z")} for row in rows]


def test_a_bucket_keeps_it_as_a_folder_does(
    bucket: str, tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _open(_write(frame, tmp_path / "t.csv"))
    place = place_of(open_store(bucket), source.address, source.fingerprint)
    plain = _table(source, ["n", "word", "when"])
    for names in (["n"], ["word", "when"], ["n", "word", "when"]):
        kept = source.converted(place, names)
        assert _table(kept, names).equals(plain.select(names))
        assert len(place.list()) == len(ranges(source))
    monkeypatch.setattr(text, "batches", None)  # nothing is parsed any more
    assert _table(source.converted(place, ["n"]), ["n", "word", "when"]).equals(plain)
    _write(frame.head(300), tmp_path / "t.csv")
    changed = _open(tmp_path / "t.csv")
    assert place_of(open_store(bucket), changed.address, changed.fingerprint).list() == []
    assert open_store(bucket).list() == []
