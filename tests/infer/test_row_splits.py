"""Beside each prediction of the pipeline's own source stands the split that its row is in."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.errors import DataError
from ddlflow.infer.predict import PreparedSource, infer
from ddlflow.spec.pipeline import Data

from .conftest import Trained, fit, in_turn

ROWS = 2000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranges of several pieces each."""
    monkeypatch.setattr(source_module, "PIECE_ROWS", 128)
    monkeypatch.setattr(text, "RANGE_BYTES", 20_000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 3_000)


def frame(rows: int = ROWS) -> pd.DataFrame:
    random = np.random.default_rng(rows)
    a, b = random.normal(size=(2, rows))
    y = np.where(a + b > 0, "yes", "no")
    b[random.random(rows) < 0.2] = np.nan  # these rows are dropped
    named = random.choice(["train", "validation", "test"], rows, p=[0.7, 0.2, 0.1])
    return pd.DataFrame({"id": np.arange(rows), "a": a, "b": b, "part": named, "y": y})


def write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False, row_group_size=300)
    else:
        table.to_csv(path, index=False)


def predicted(made: Trained, location: str, *, keys: Any = ("id",), is_test: bool = False) -> Any:
    out = made.root / f"out-{location}-{len(keys)}"
    infer(
        made.folder,
        location,
        out,
        keys=keys,
        data_root=made.root,
        threads=1,
        map_over=in_turn,
        prepared=PreparedSource(made.dataset, is_test),
    )
    return pd.concat(map(pd.read_parquet, sorted(out.glob("part-*"))), ignore_index=True)


def by_row(made: Trained) -> dict[int, str]:
    """Row of the source -> split, of all shards."""
    found: dict[int, str] = {}
    for shard in Manifest.load(made.dataset).shards:
        rows = map_shard(made.dataset / shard.path)["row"].tolist()
        found.update(dict.fromkeys(rows, shard.split))
    return found


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz"])
def test_each_row_has_its_split_and_a_dropped_row_has_none(tmp_path: Path, name: str) -> None:
    table = frame()
    write(table, tmp_path / name)
    spec = Data(source=name, label="y", features=["a", "b"], missing="drop")
    made = fit(tmp_path, pa.Table.from_pandas(table), spec, "binary", epochs=1)
    found = predicted(made, name)
    assert list(found) == ["id", "split", "prediction", "probability"]
    split = [None if value is None else str(value) for value in found["split"]]
    wanted = by_row(made)
    assert split == [wanted.get(row) for row in range(ROWS)]
    assert (found["split"].isna() == table["b"].isna()).all()
    kept = found["split"].value_counts()
    assert dict(kept) == {n: made.manifest.rows(n) for n in ("train", "validation", "test")}


def test_rows_that_a_condition_leaves_out_are_predicted_and_have_no_split(tmp_path: Path) -> None:
    table = frame()
    write(table, tmp_path / "t.csv")
    spec = Data(
        source="t.csv",
        label="late",
        features=["a", "b2"],
        derive={"late": "a > 0.5", "b2": "b * b"},
        where="id % 3 <> 0",
    )
    made = fit(tmp_path, pa.Table.from_pandas(table), spec, "binary", epochs=1)
    found = predicted(made, "t.csv")
    assert len(found) == ROWS
    assert (found["split"].isna() == (table["id"] % 3 == 0)).all()
    wanted = by_row(made)
    assert [None if v is None else v for v in found["split"]] == [
        wanted.get(r) for r in range(ROWS)
    ]


def test_a_column_of_splits_comes_back(tmp_path: Path) -> None:
    table = frame()
    write(table, tmp_path / "t.parquet")
    spec = Data(source="t.parquet", label="y", features=["a", "b"], split={"column": "part"})
    made = fit(tmp_path, pa.Table.from_pandas(table), spec, "binary", epochs=1)
    assert predicted(made, "t.parquet")["split"].tolist() == table["part"].tolist()


def test_the_test_source_is_test(tmp_path: Path) -> None:
    write(frame(), tmp_path / "t.parquet")
    other = frame(700)
    write(other, tmp_path / "test.csv")
    spec = Data(
        source="t.parquet", test_source="test.csv", label="y", features=["a", "b"], missing="drop"
    )
    made = fit(tmp_path, pa.Table.from_pandas(frame()), spec, "binary", epochs=1)
    found = predicted(made, "test.csv", is_test=True)
    wanted = [None if np.isnan(value) else "test" for value in other["b"]]
    assert found["split"].tolist() == wanted
    assert set(predicted(made, "t.parquet")["split"].dropna()) == {"train", "validation"}


def test_a_key_called_split_stands_as_it_is(tmp_path: Path) -> None:
    table = frame().rename(columns={"part": "split"})
    write(table, tmp_path / "t.parquet")
    spec = Data(source="t.parquet", label="y", features=["a", "b"], split={"column": "split"})
    made = fit(tmp_path, pa.Table.from_pandas(table), spec, "binary", epochs=1)
    found = predicted(made, "t.parquet", keys=("id", "split"))
    assert list(found) == ["id", "split", "prediction", "probability"]
    assert found["split"].tolist() == table["split"].tolist()


@pytest.mark.parametrize("rows", [1500, 1990, 2010, 3000])
def test_a_source_that_changed_meanwhile_is_no_guess(tmp_path: Path, rows: int) -> None:
    write(frame(), tmp_path / "t.csv")
    spec = Data(source="t.csv", label="y", features=["a", "b"])
    made = fit(tmp_path, pa.Table.from_pandas(frame()), spec, "binary", epochs=1)
    write(frame(3000)[:rows], tmp_path / "t.csv")
    with pytest.raises(DataError, match="changed while the run was under way"):
        predicted(made, "t.csv")
    assert not list(tmp_path.glob("out*"))
