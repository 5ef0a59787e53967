"""A stray text among numbers is told with its line, and no category is ever made of numbers."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ddlflow.data.sources.opening import open_source
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data


def _spec(**values: Any) -> Data:
    return Data(**({"source": "x", "label": "y"} | values))


def _csv(values: list[str], header: str = "y,a\n") -> bytes:
    return (header + "".join(f"{i % 2},{value}\n" for i, value in enumerate(values))).encode()


def _refused(path: Path, content: bytes, spec: Data) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(path.name, spec, path.parent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stray", ["n/a?", "1,5", "--", "0x1F", "12 GeV"])
def test_one_text_among_numbers_is_told(tmp_path: Path, stray: str) -> None:
    values = ["0.5", "-1e3", "", "NaN", "-inf", "+7.", " 8", ".25"] * 5
    values[20] = f'"{stray}"'
    content = _csv(values)
    for name, data in (("t.csv", content), ("t.csv.gz", gzip.compress(content))):
        message = _refused(tmp_path / name, data, _spec())
        assert f"{name}, line 22: column a holds {stray!r}, where " in message
        assert "in data.text to read it as text, or in data.exclude" in message


def test_the_line_counts_empty_lines_and_a_header(tmp_path: Path) -> None:
    values = ["1"] * 19 + ["oops"]
    content = b"\r\n" + _csv(values).replace(b"\n", b"\r\n").replace(b"0,1", b"\r\n0,1", 2)
    line = content.split(b"\r\n").index(b"1,oops") + 1
    assert f"line {line}: column a" in _refused(tmp_path / "t.csv", content, _spec())
    message = _refused(tmp_path / "t.csv", _csv(values, ""), _spec(header=False, label="c0"))
    assert "line 20: column c1 holds 'oops', where 19 of the first 20 values" in message


def test_numbers_in_quotes_in_json_lines(tmp_path: Path) -> None:
    rows = [{"y": 0, "a": str(i)} for i in range(20)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert open_source("t.jsonl", _spec(), tmp_path).schema["a"] == pa.string()  # all are: meant
    rows[7]["a"] = "unknown"
    message = _refused(path, "".join(json.dumps(row) + "\n\n" for row in rows).encode(), _spec())
    assert "t.jsonl, line 15: column a holds 'unknown', where 19 of the first 20" in message


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        (["1"] * 19 + ["x"], {"categorical": ["a"]}),
        (["1"] * 19 + ["x"], {"exclude": ["a"]}),
        (["1"] * 19 + ["x"], {"features": ["b"]}),
        (["1"] * 19 + ["x"], {"label": "a"}),
        (["1"] * 19 + ["train"], {"split": {"column": "a"}}),
        (["1"] * 17 + ["x"] * 3, {}),  # too many to be mistakes
        (["x"] * 20, {}),
    ],
)
def test_a_column_that_may_be_text(tmp_path: Path, values: list[str], spec: dict[str, Any]) -> None:
    (tmp_path / "t.csv").write_bytes(_csv(values).replace(b"\n", b",1\n").replace(b"a,1", b"a,b"))
    assert open_source("t.csv", _spec(**spec), tmp_path).schema["a"] == pa.string()


def test_every_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_bytes(_csv(["1"] * 20))
    (tmp_path / "2.csv").write_bytes(_csv(["1"] * 19 + ["x"]))
    with pytest.raises(DataError, match=r"2\.csv, line 21: column a holds 'x'"):
        open_source("*.csv", _spec(), tmp_path)


def test_a_text_in_a_label_of_numbers_is_told_and_a_class_is_none(tmp_path: Path) -> None:
    """Few different numbers may be classes with names, many are measured."""
    rows = [f"{i / 8},{i}" for i in range(300)]
    rows[200] = "unknown,200"
    content = ("y,a\n" + "\n".join(rows) + "\n").encode()
    message = _refused(tmp_path / "t.csv", content, _spec())
    assert "line 202: column y holds 'unknown', where 299 of the first 300" in message
    assert 'data.missing_values: [pandas, "unknown"]' in message
    spec = _spec(missing_values=["pandas", "unknown"])
    assert open_source("t.csv", spec, tmp_path).schema["y"] == pa.float64()
    assert open_source("t.csv", _spec(text=["y"]), tmp_path).schema["y"] == pa.string()
    rows = [f"{i % 10},{i}" for i in range(300)]
    rows[200] = "unknown,200"
    (tmp_path / "t.csv").write_text("y,a\n" + "\n".join(rows))
    assert open_source("t.csv", _spec(), tmp_path).schema["y"] == pa.string()
