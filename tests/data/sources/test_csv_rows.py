"""Where rows of CSV end, against a reader that goes from sign to sign."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddlflow.data.sources import row_blocks, text
from ddlflow.data.sources.csv_rows import CsvRows
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data


def _slowly(block: bytes, delimiter: bytes) -> tuple[list[int], int | None]:
    """After each line end outside quotes, and where the value left open begins."""
    ends, opened, is_start, position = [], None, True, 0
    while position < len(block):
        sign = block[position : position + 1]
        if opened is not None:
            if sign == b'"':
                if block[position + 1 : position + 2] == b'"':
                    position += 1
                else:
                    opened = None
        elif sign == b'"' and is_start:
            opened = position
        elif sign == b"\n":
            ends.append(position + 1)
        is_start = opened is None and sign in (b"\n", b"\r", delimiter)
        position += 1
    return ends, opened


@given(st.text(alphabet='",\n\na ', max_size=40))
@example('a "b",\n"c\nd"\n')
@example('"a""\n"",b"\n"c')
@example('5" pipe\n"x\ny"\n')
def test_rows_end_where_a_slow_reader_says(written: str) -> None:
    block = written.encode()
    ends, opened = _slowly(block, b",")
    rows = CsvRows(block, b",")
    assert rows.last_end() == (ends[-1] if ends else 0)
    assert rows.open_at == opened
    for position in range(len(block)):
        assert rows.next_end(position) == next((end for end in ends if end > position), -1)


def test_a_block_after_a_byte_order_mark_begins_with_a_row() -> None:
    assert CsvRows(b'\xef\xbb\xbf"a\nb",c\n1,"', b",").last_end() == 11


WORDS = ["plain", "two\nlines", 'a "word", quoted', "", "comma, here", '"', "\n\n", 'end"\n"x', "é"]


@pytest.fixture
def frame() -> pd.DataFrame:
    chance = np.random.default_rng(3)
    rows = 500
    return pd.DataFrame(
        {
            "note": chance.choice(WORDS, rows) + np.where(chance.random(rows) < 0.3, "z" * 60, "."),
            "a": chance.normal(size=rows).round(3),
            "y": chance.integers(0, 2, rows),
            "last": chance.choice(WORDS, rows) + ".",
        }
    )


def _read(path: Path, **spec: Any) -> tuple[pd.DataFrame, int]:
    data = Data(**({"source": "x", "label": "y", "rare_below": 1} | spec))
    source = open_source(path.name, data, path.parent)
    parts = ranges(source)
    found = [
        row
        for part in parts
        for batch in read(source.only(part), part, list(source.schema))
        for row in batch.to_pylist()
    ]
    return pd.DataFrame(found), len(parts)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [0, 1, 2])  # where needed, all, all that is no number
@pytest.mark.parametrize("step", [40, 171, 1000, 1 << 20])
def test_quoted_line_ends_are_read_wherever_a_file_is_cut(
    tmp_path: Path,
    frame: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    *,
    line_end: str,
    quoting: Literal[0, 1, 2],
    step: int,
) -> None:
    """By pandas' reader of the whole file, more rows than every buffer, inside quotes or not."""
    monkeypatch.setattr(text, "RANGE_BYTES", step)
    monkeypatch.setattr(text, "BLOCK_BYTES", max(step // 3, 16))
    monkeypatch.setattr(text, "SCHEMA_BYTES", 300)
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, lineterminator=line_end, quoting=quoting)
    found, parts = _read(path)
    wanted = pd.read_csv(io.StringIO(path.read_bytes().decode(), newline=""))
    pd.testing.assert_frame_equal(found.astype(wanted.dtypes), wanted)
    assert (parts > 10) == (step <= 1000)


def test_quoted_line_ends_in_a_file_of_many_megabytes(tmp_path: Path) -> None:
    """With the sizes that are used: blocks of 8 MiB, and a range each 64 MiB."""
    note = "line one\nline two, with a comma\n" + "z" * 400
    rows = 170_000
    chance = np.random.default_rng(0)
    frame = pd.DataFrame({"a": chance.normal(size=rows), "note": note, "y": np.arange(rows) % 2})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert (tmp_path / "t.csv").stat().st_size > text.RANGE_BYTES
    source = open_source("t.csv", Data(source="x", label="y", exclude=["note"]), tmp_path)
    parts = ranges(source)
    assert len(parts) == 2
    values = [batch.column(0).to_numpy() for part in parts for batch in read(source, part, ["a"])]
    np.testing.assert_array_equal(np.concatenate(values), frame["a"])


def test_numbers_alone_are_cut_without_reading_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "RANGE_BYTES", 100)
    monkeypatch.setattr(row_blocks, "_row_ends", None)
    (tmp_path / "t.csv").write_text("y,a\n" + "0,1.25\n1,2.5\n" * 100)
    found, parts = _read(tmp_path / "t.csv")
    assert len(found) == 200
    assert parts > 10


def test_a_quote_in_the_midst_of_values_hides_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "RANGE_BYTES", 100)
    monkeypatch.setattr(text, "BLOCK_BYTES", 30)
    (tmp_path / "t.csv").write_text("y,a\n" + '0,5" pipe\n1,"two\nlines, 5"" long"\n' * 60)
    found, parts = _read(tmp_path / "t.csv")
    assert found["a"].tolist() == ['5" pipe', 'two\nlines, 5" long'] * 60
    assert parts > 5


def test_a_quote_that_is_never_closed_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["0,ab,1"] * 60
    rows[40] = '0,"ab,1'
    (tmp_path / "t.csv").write_text("y,s,a\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"t\.csv, line 42: the quote that opens a value there"):
        _read(tmp_path / "t.csv")
    monkeypatch.setattr(text, "SCHEMA_BYTES", 60)
    with pytest.raises(DataError, match=r"t\.csv, line 42: the quote that opens a value there"):
        _read(tmp_path / "t.csv")


def test_a_header_with_a_line_end_in_a_name(tmp_path: Path) -> None:
    frame = pd.DataFrame({"y": [0, 1] * 5, "energy\n[GeV]": np.arange(10.0)})
    for name, mark in (("t.csv", b""), ("bom.csv", b"\xef\xbb\xbf")):
        frame.iloc[:, ::-1].to_csv(tmp_path / name, index=False)
        (tmp_path / name).write_bytes(mark + (tmp_path / name).read_bytes())
        found, _ = _read(tmp_path / name)
        assert found["energy\n[GeV]"].tolist() == list(range(10))
    text_lines = (tmp_path / "t.csv").read_text().replace("7.0", "seven")
    (tmp_path / "t.csv").write_text(text_lines * 1)
    with pytest.raises(DataError, match=r"line 10: column energy\s\[GeV\] holds 'seven'"):
        _read(tmp_path / "t.csv", exclude=[])
