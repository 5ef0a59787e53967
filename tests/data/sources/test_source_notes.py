"""The index of a frame is no feature unless it is named, and what was left out is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.roles import choose
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data


@pytest.fixture
def frame() -> pd.DataFrame:
    """Sorted by its label, then shuffled: only the index tells what the label was."""
    chance = np.random.default_rng(0)
    found = pd.DataFrame({"a": chance.normal(size=200), "y": np.arange(200) // 100})
    return found.sample(frac=1, random_state=1)


def _features(source: Source, spec: Data) -> list[str]:
    return choose(source.schema, spec, "binary", index=source.index).features


def _write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyarrow.feather.write_feather(pa.Table.from_pandas(frame), path)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.feather"])
@pytest.mark.parametrize("named", [False, True])
def test_an_index_is_no_feature(
    tmp_path: Path, frame: pd.DataFrame, name: str, named: bool
) -> None:
    if named:
        frame.index.name = "row"
    _write(frame, tmp_path / name)
    spec = Data(source=name, label="y")
    source = open_source(name, spec, tmp_path)
    if named and name == "t.csv":  # a column as any other: nothing tells
        assert _features(source, spec) == ["row", "a"]
        return
    (index,) = source.index
    assert _features(source, spec) == ["a"]
    assert source.notes[0].startswith(f"{index}: the index of the table that was written")
    for chosen in ({"features": ["a", index]}, {"categorical": [index]}):
        spec = Data(source=name, label="y", **chosen)
        found = open_source(name, spec, tmp_path)
        assert sorted(_features(found, spec)) == sorted(["a", index])
        assert not any("index" in note for note in found.notes)
    spec = Data(source=name, label="y", exclude=[index])
    assert open_source(name, spec, tmp_path).notes == ()


def test_several_levels_and_files(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.index = pd.MultiIndex.from_product([range(20), range(10)], names=["event", None])
    frame[:100].to_parquet(tmp_path / "p0.parquet")
    frame[100:].to_parquet(tmp_path / "p1.parquet")
    spec = Data(source="x", label="y")
    source = open_source("*.parquet", spec, tmp_path)
    assert sorted(source.index) == ["__index_level_1__", "event"]
    assert _features(source, spec) == ["a"]


def test_an_index_alone_is_nothing_to_learn_from(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame[["y"]].to_parquet(tmp_path / "t.parquet")
    spec = Data(source="x", label="y")
    source = open_source("t.parquet", spec, tmp_path)
    with pytest.raises(DataError, match="index, __index_level_0__, is none unless named"):
        _features(source, spec)


@pytest.mark.parametrize("first", [["Mazda RX4", "Datsun 710", "Valiant"], [3, 1, 2]])
def test_row_names_of_r(tmp_path: Path, first: list[Any]) -> None:
    rows = "".join(f'"{name}",{i}.5,{i % 2}\n' for i, name in enumerate(first))
    (tmp_path / "t.csv").write_text('"","mpg","y"\n' + rows)
    spec = Data(source="x", label="y")
    assert _features(open_source("t.csv", spec, tmp_path), spec) == ["mpg"]


def test_a_column_without_a_name_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",a,,y\n" + "1.5,2,x,0\n1.5,3,x,1\n" * 5)
    spec = Data(source="x", label="y")
    source = open_source("t.csv", spec, tmp_path)
    assert _features(source, spec) == ["Unnamed: 0", "a", "Unnamed: 2"]  # as pandas calls them
    assert source.notes == (
        "Column 1 of 4 has no name: it is called 'Unnamed: 0'.",
        "Column 3 of 4 has no name: it is called 'Unnamed: 2'.",
    )
    wanted = list(pd.read_csv(tmp_path / "t.csv").columns)
    assert list(source.schema) == wanted


def test_notes_are_kept_with_the_data_set(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame["land"] = np.where(np.arange(200) % 3 == 0, "NA", "DE")
    frame.to_csv(tmp_path / "t.csv")
    manifest = prepare(
        Data(source="t.csv", label="y"),
        "binary",
        data_root=tmp_path,
        folder=tmp_path / "made",
        map=lambda function, items, _: map(function, items),
    )
    assert list(manifest.columns.numeric) == ["a"]
    assert "Unnamed: 0: the index" in manifest.warnings[0]
    assert "land: 'NA' 67 times in the first 200 rows, read as missing" in manifest.warnings[1]
