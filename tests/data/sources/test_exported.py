"""Exported tables: the same ranges and bytes from any partitions, and what is refused."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ddlflow.data.sources import export_part
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources.export_part import ExportedPart, PartWriter, canonical_type, dense
from ddlflow.data.sources.exported import NAME, Exported, seal
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data
from ddlflow.store.folder import FolderStore

ROWS = 500
TABLE = pa.table(
    {
        "id": list(range(ROWS)),
        "x": [i / 8 if i % 7 else None for i in range(ROWS)],
        "word": [("Köln", "two\nlines", None)[i % 3] for i in range(ROWS)],
        "steps": [[float(i)] * (i % 4) if i % 5 else None for i in range(ROWS)],
        "y": [i % 2 for i in range(ROWS)],
    }
)


def export(
    folder: Path, frames: Sequence[Any], key: Sequence[str] = ("id",), **more: Any
) -> Exported:
    """Writes each frame as a partition, in another order than theirs."""
    write = PartWriter(str(folder), tuple(key), **more)
    told = [json.loads(json.dumps(write(n, [frame]))) for n, frame in enumerate(frames)][::-1]
    parts = [ExportedPart.from_json(one) for one in told]
    return seal(
        FolderStore(folder),
        parts,
        shown="the table t",
        notes=(),
        key="data.source.key",
        map_over=lambda function, items, _: map(function, items),
    )


def cut(at: Sequence[int]) -> list[pa.Table]:
    bounds = [0, *at, ROWS]
    return [TABLE.slice(a, b - a) for a, b in itertools.pairwise(bounds)]


def rows(source: Exported) -> list[list[dict[str, Any]]]:
    names = list(source.schema)
    return [[r for b in read(source, p, names) for r in b.to_pylist()] for p in ranges(source)]


@pytest.mark.parametrize("block_rows", [7, 100, 10_000])
def test_partitions_and_blocks_do_not_enter_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 64)
    monkeypatch.setattr(export_part, "BLOCK_ROWS", block_rows)
    cuts: list[list[int]] = [[], [3, 3, 250], list(range(0, ROWS, 9)), [499]]
    found = [export(tmp_path / str(n), cut(at)) for n, at in enumerate(cuts)]
    assert len({one.fingerprint for one in found}) == 1
    first = rows(found[0])
    assert [len(own) for own in first] == [64] * 7 + [52]
    assert [row for own in first for row in own] == TABLE.to_pylist()
    assert all(rows(one) == first for one in found)
    assert all(ranges(one) == ranges(found[0]) for one in found)


def test_a_changed_value_a_null_and_a_type_are_another_fingerprint(tmp_path: Path) -> None:
    def with_(name: str, values: Any) -> pa.Table:
        return TABLE.set_column(TABLE.schema.get_field_index(name), name, values)

    words = [*TABLE["word"].to_pylist()[:-1], ""]
    steps = [*TABLE["steps"].to_pylist()[:-1], [0.0, 0.0]]
    tables = [
        TABLE,
        with_("word", pa.array(words)),
        with_("steps", pa.array(steps)),
        with_("x", TABLE["x"].fill_null(0.0)),
        with_("y", TABLE["y"].cast(pa.int32())),
        TABLE.slice(0, ROWS - 1),
    ]
    found = {export(tmp_path / str(n), [t]).fingerprint for n, t in enumerate(tables)}
    assert len(found) == len(tables)


def test_what_a_null_hides_and_where_a_table_starts_in_memory_is_no_value(tmp_path: Path) -> None:
    hidden = pa.array(np.arange(4.0), mask=np.array([False, True, False, True]))
    plain = pa.array([0.0, None, 2.0, None])
    doubled = pa.chunked_array([hidden, plain]).combine_chunks()[4:]
    found = {
        export(tmp_path / str(n), [pa.table({"id": range(4), "x": x})]).fingerprint
        for n, x in enumerate((hidden, plain, doubled))
    }
    assert len(found) == 1


def test_what_no_manifest_lists_is_nothing(tmp_path: Path) -> None:
    write = PartWriter(str(tmp_path), ("id",))
    write(0, [TABLE])  # a task that was tried again
    source = export(tmp_path, cut([100]))
    assert source.rows == ROWS
    assert len([p for p in tmp_path.iterdir() if p.suffix == ".arrow"]) == 2
    again = open_source(f"{tmp_path}/{NAME}", Data(source="x", label="y"), Path("nowhere"))
    assert [batch for p in ranges(again) for batch in read(again, p, ["id"])]
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("ids", "at"),
    [([0, 1, 1, 2], [2]), ([0, 1, 1, 2], []), ([0.0, float("nan"), float("nan")], [])],
    ids=["at a border", "inside", "not a number"],
)
def test_rows_that_the_key_does_not_tell_apart_are_refused(
    tmp_path: Path, ids: list[Any], at: list[int]
) -> None:
    table = pa.table({"id": ids})
    bounds = [0, *at, len(ids)]
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    with pytest.raises(DataError, match=r"data.source.key does not tell the rows of the table t"):
        export(tmp_path, parts)
    assert not (tmp_path / NAME).exists()


def test_keys_of_several_columns_and_nulls(tmp_path: Path) -> None:
    table = pa.table({"day": [None, None, 1, 1], "id": [None, 1, 1, 2]})
    assert export(tmp_path / "a", [table], ("day", "id")).rows == 4
    with pytest.raises(DataError, match="two have day None"):
        export(tmp_path / "b", [table], ("day",))


def vectors(values: Sequence[Any]) -> pa.StructArray:
    """As Spark hands over pyspark.ml's vectors: a list is dense, (size, {index: value}) sparse."""
    found = []
    for v in values:
        if isinstance(v, tuple):
            size, own = v
            found.append(
                {"type": 0, "size": size, "indices": list(own), "values": list(own.values())}
            )
        else:
            found.append(v and {"type": 1, "size": None, "indices": None, "values": v})
    fields = [("type", pa.int8()), ("size", pa.int32())]
    fields += [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
    return pa.array(found, pa.struct(fields))


MIXED = [[1.0, 2.0, 3.0], (3, {2: 5.0}), None, (3, {}), [4.0, 0.0, 6.0], (3, {0: 7.0, 1: 8.0})]


def test_vectors_become_tensors(tmp_path: Path) -> None:
    wanted = [[1, 2, 3], [0, 0, 5], None, [0, 0, 0], [4, 0, 6], [7, 8, 0]]
    for array in (vectors(MIXED), vectors([(9, {8: 1.0}), *MIXED])[1:]):
        assert dense(array).to_pylist() == wanted
    parts = [
        pa.table({"id": [0, 1, 2], "v": vectors([None, None, None])}),
        pa.table({"id": range(3, 9), "v": vectors(MIXED)}),
    ]
    source = export(tmp_path, parts, vectors=("v",))
    assert source.schema["v"] == pa.list_(pa.float64(), 3)
    assert [row["v"] for own in rows(source) for row in own] == [None] * 3 + wanted


def test_vectors_of_unlike_lengths_are_refused(tmp_path: Path) -> None:
    parts = [pa.table({"id": [k], "v": vectors([[1.0] * (k + 2)])}) for k in range(2)]
    with pytest.raises(DataError, match="column v holds vectors of 2 and of 3 numbers"):
        export(tmp_path, parts, vectors=("v",))


def test_times_are_of_no_session_and_texts_of_one_type() -> None:
    assert canonical_type(pa.timestamp("us", "Asia/Tokyo")) == pa.timestamp("us", "UTC")
    assert canonical_type(pa.timestamp("us")) == pa.timestamp("us")
    assert canonical_type(pa.large_list(pa.large_string())) == pa.list_(pa.string())


def test_partitions_of_pandas_may_differ_in_what_is_missing(tmp_path: Path) -> None:
    frames = [
        pd.DataFrame({"id": [0, 1], "n": [1, 2], "word": ["a", "b"]}),
        pd.DataFrame({"id": [2, 3], "n": [1.5, None], "word": [None, None]}),
        pd.DataFrame({"id": [], "n": [], "word": []}),
    ]
    source = export(tmp_path, frames)
    assert source.schema == {"id": pa.int64(), "n": pa.float64(), "word": pa.string()}
    found = [row for own in rows(source) for row in own]
    assert [row["n"] for row in found] == [1.0, 2.0, 1.5, None]
    assert [row["word"] for row in found] == ["a", "b", None, None]
    other = pd.DataFrame({"id": [4], "n": ["a text"], "word": ["a"]})
    with pytest.raises(DataError, match="its partitions have unlike columns"):
        export(tmp_path / "other", [*frames, other])


def test_what_a_worker_wrote_elsewhere_is_told(tmp_path: Path) -> None:
    told = ExportedPart.from_json(PartWriter(str(tmp_path / "there"), ())(0, [TABLE]))
    with pytest.raises(DataError, match=r"which is not seen from here\. Set storage"):
        seal(
            FolderStore(tmp_path / "here"),
            [told],
            shown="t",
            notes=(),
            key="data.source.key",
            map_over=lambda function, items, _: map(function, items),
        )


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the table t holds no row. Correct data.source."):
        export(tmp_path, [TABLE.slice(0, 0)])
