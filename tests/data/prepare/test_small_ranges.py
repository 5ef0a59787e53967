"""Small ranges of a source share tasks and shards; other ranges keep their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.prepare.row_splits import row_splits
from ddlflow.data.prepare.small_ranges import SMALL, group_small_ranges, read_in_turn
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source, ranges
from ddlflow.spec.pipeline import Data

PIECE = 320  # rows, so that a range below 20 is small


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", PIECE)


def in_turn(function: Any, items: list[Any], _: str) -> Iterator[Any]:
    return map(function, items)


def write(folder: Path, sizes: list[int]) -> Data:
    """Files of so many rows, numbered on; and the data section that reads them."""
    folder.mkdir()
    first = 0
    for number, rows in enumerate(sizes):
        numbers = np.arange(first, first + rows)
        words = pa.array([f"v{n % 7}" for n in numbers]).dictionary_encode()
        table = pa.table({"y": numbers % 2, "a": numbers, "c": words})  # each its own dictionary
        pq.write_table(table, folder / f"{number:04d}.parquet")
        first += rows
    return Data(source=folder.name, label="y", split={"validation": 0.2, "test": 0.1})


def opened(root: Path, spec: Data) -> Source:
    assert isinstance(spec.source, str)
    return open_source(spec.source, spec, root)


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([5] * 10, [10]),
        ([19] * 20, [16, 4]),  # 16 x 19 = 304 rows, one more is more than a piece
        ([20] * 3, [1, 1, 1]),  # 320 / 16: not small
        ([5, 5, 300, 5, 5], [2, 1, 2]),
        ([400, 7], [1, 1]),
        ([7, 400], [1, 1]),
        ([1], [1]),
    ],
)
def test_neighbours_that_are_small_are_one_task(
    tmp_path: Path, sizes: list[int], groups: list[int]
) -> None:
    source = opened(tmp_path, write(tmp_path / "t", sizes))
    found = group_small_ranges(source, ranges(source))
    assert [len(parts) for parts in found] == groups
    assert [part for parts in found for part in parts] == ranges(source)


def test_files_of_text_are_small_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "RANGE_BYTES", 64 * SMALL)
    for number, rows in enumerate([3, 3, 3, 40, 3]):
        table = pa.table({"y": np.arange(rows) % 2, "a": np.arange(rows)})
        pa.csv.write_csv(table, tmp_path / f"{number}.csv")
    source = opened(tmp_path, Data(source="*.csv", label="y"))
    assert [len(parts) for parts in group_small_ranges(source, ranges(source))] == [3, 1, 1]


def test_a_piece_goes_over_files_and_ends_where_a_type_changes(tmp_path: Path) -> None:
    write(tmp_path / "t", [15] * 30)
    table = pq.read_table(tmp_path / "t" / "0009.parquet")
    wide = table.set_column(1, "a", table["a"].cast(pa.float64()))
    pq.write_table(wide, tmp_path / "t" / "0009.parquet")
    source = opened(tmp_path, Data(source="t", label="y"))
    parts, rows = ranges(source), [0] * 30
    batches = list(read_in_turn(source, parts, ["a", "c"], rows))
    assert [batch.num_rows for batch in batches] == [135, 15, 300]
    assert rows == [15] * 30
    read = np.concatenate([batch["a"].to_numpy() for batch in batches])
    assert read.tolist() == list(range(450))
    texts = [text for batch in batches for text in batch["c"].to_pylist()]
    assert texts == [f"v{n % 7}" for n in range(450)]


@pytest.mark.parametrize("name", ["parquet", "csv"])
def test_every_row_once_with_its_split_in_every_range(tmp_path: Path, name: str) -> None:
    sizes = [15] * 70 + [330, 3, 17, 1]  # 1,050 small rows: three tasks and a part of one
    spec = write(tmp_path / "t", sizes)
    if name == "csv":
        for path in sorted((tmp_path / "t").glob("*.parquet")):
            pa.csv.write_csv(pq.read_table(path), path.with_suffix(".csv"))
            path.unlink()
    dataset = tmp_path / "ds"
    prepare(spec, "binary", data_root=tmp_path, folder=dataset, map=in_turn)
    manifest = Manifest.load(dataset)
    assert manifest.range_rows == tuple(sizes)
    split_of: dict[int, str] = {}
    for shard in manifest.shards:
        tensors = map_shard(dataset / shard.path)
        assert (tensors["row"] >= shard.first_row).all()
        assert np.array_equal(tensors["features"][:, 0], tensors["row"])
        split_of.update(dict.fromkeys(tensors["row"].tolist(), shard.split))
    assert sorted(split_of) == list(range(sum(sizes)))
    assert len(manifest.shards) < 30
    held_out = [manifest.rows(split) for split in ("validation", "test")]
    assert held_out == [round(sum(sizes) * share) for share in (0.2, 0.1)]

    first = 0
    for own in row_splits(dataset, len(sizes), is_test=False):
        assert own.first_row == first
        for start in range(0, own.rows, 100):
            rows = min(100, own.rows - start)
            expected = [split_of[first + start + k] for k in range(rows)]
            assert own.of_piece(start, rows).to_pylist() == expected
        first += own.rows
