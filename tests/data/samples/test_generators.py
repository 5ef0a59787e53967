from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hosts import half_written

from ddlflow.data.samples import generators
from ddlflow.data.samples.generators import GENERATORS, plan, write_part
from ddlflow.errors import DataError, SpecError
from ddlflow.spec.pipeline import MadeName

every_source = pytest.mark.parametrize("use", list(GENERATORS))


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: pa.Table, other: pa.Table) -> bool:
    """pandas takes NaN for NaN, as Arrow does not."""
    return one.schema.equals(other.schema) and one.to_pandas().equals(other.to_pandas())


def test_a_pipeline_may_name_every_source():
    assert get_args(MadeName) == tuple(GENERATORS)


@every_source
def test_rows_depend_on_their_place_and_the_seed_alone(use):
    source = GENERATORS[use]
    table = source.events(60_000, seed=3)
    assert table.schema == source.SCHEMA
    assert set(source.REPEATING) < set(table.schema.names)
    for first, rows in ((0, 1_000), (20_001, 30_000), (24_999, 2), (50_000, 10_000)):
        again = source.events(rows, seed=3, first=first)
        assert same(again, table.slice(first, rows))
    assert source.events(0, seed=3).num_rows == 0
    assert source.events(0, seed=3).schema == source.SCHEMA
    assert not same(source.events(1_000, seed=4), table.slice(0, 1_000))


@every_source
def test_the_largest_seed_is_a_seed(use):
    assert GENERATORS[use].events(10, seed=2**64 - 1).num_rows == 10


@every_source
def test_same_bytes_for_any_number_and_order_of_workers(tmp_path, monkeypatch, use):
    monkeypatch.setattr(generators, "PART_ROWS", 20_000)
    plans = {name: plan(use, 50_001, tmp_path / name, seed=5) for name in ("here", "two")}
    here = [write_part(part) for part in reversed(plans["here"])]
    assert sorted(result.rows for result in here) == [10_001, 20_000, 20_000]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(write_part, plans["two"]))
    assert read(tmp_path / "two") == read(tmp_path / "here")
    assert all(Path(r.path).stat().st_size == r.bytes and not r.cached for r in results)
    table = pq.read_table(tmp_path / "here")
    assert same(table, GENERATORS[use].events(50_001, seed=5))
    # As many rows as you like: the first ones stay the same.
    more = [write_part(part) for part in plan(use, 30_000, tmp_path / "fewer", seed=5)]
    first = tmp_path / "here" / "part-000000.parquet"
    assert Path(more[0].path).read_bytes() == first.read_bytes()
    assert same(pq.read_table(more[1].path), table.slice(20_000, 10_000))


@every_source
def test_row_groups_are_many_enough_to_share_out(tmp_path, use):
    (part,) = plan(use, 120_000, tmp_path)
    write_part(part)
    metadata = pq.ParquetFile(part.path).metadata
    assert [metadata.row_group(k).num_rows for k in range(3)] == [50_000, 50_000, 20_000]


def test_a_part_that_stands_is_not_written_again(tmp_path):
    (part,) = plan("particles", 2_000, tmp_path)
    assert not write_part(part).cached
    before = Path(part.path).stat()
    (again,) = plan("particles", 2_000, tmp_path)
    assert write_part(again).cached
    assert Path(part.path).stat().st_mtime_ns == before.st_mtime_ns


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    (part,) = plan("collider", 2_000, tmp_path / "whole")
    write_part(part)
    whole = Path(part.path).read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "part-000000.parquet").write_bytes(whole[: len(whole) // 2])
    half_written(cut / "part-000000.parquet")
    (part,) = plan("collider", 2_000, cut)
    assert not write_part(part).cached
    assert read(cut) == {"part-000000.parquet": whole}


@pytest.mark.parametrize(
    ("use", "rows", "seed"),
    [("collider", 2_000, 2), ("collider", 1_999, 1), ("particles", 2_000, 1)],
)
def test_a_folder_with_other_rows_is_refused(tmp_path, use, rows, seed):
    for part in plan("collider", 2_000, tmp_path, seed=1):
        write_part(part)
    with pytest.raises(
        DataError, match=r"part-000000.parquet is there and is not of the rows asked for"
    ):
        plan(use, rows, tmp_path, seed=seed)


def test_a_folder_with_more_parts_is_refused(tmp_path):
    pq.write_table(GENERATORS["collider"].events(10), tmp_path / "part-000007.parquet")
    with pytest.raises(DataError, match=r"part-000007.parquet is there"):
        plan("collider", 2_000, tmp_path)


@pytest.mark.parametrize(("rows", "seed"), [(0, 1), (-5, 1), (1, -1), (1, 2**64)])
def test_impossible_rows_and_seeds_are_refused(tmp_path, rows, seed):
    with pytest.raises(SpecError, match="expected a whole number"):
        plan("collider", rows, tmp_path, seed=seed)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        plan("collider", 5, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (part,) = plan("collider", 5, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_part(replace(part, path=str(tmp_path / "file" / "part.parquet")))


def test_plan_writes_nothing(tmp_path):
    parts = plan("collider", 1_000_000, tmp_path / "out")
    assert [part.rows for part in parts] == [250_000] * 4
    assert [part.first_row for part in parts] == [0, 250_000, 500_000, 750_000]
    assert not (tmp_path / "out").exists()
