"""Values of categories are counted exactly, merged by workers, and never held all at once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddlflow.data.prepare import vocabulary as vocabulary_
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.prepare.vocabulary import CategoryColumn, ValueCounts, save_counts, vocabulary
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data
from ddlflow.store.folder import FolderStore
from ddlflow.store.stored import StoredFile

COLUMNS = (CategoryColumn("town", True), CategoryColumn("code", False))


def in_turn(function: Any, items: list[Any], _: str) -> Iterator[Any]:
    return map(function, items)


def counted(path: Path, columns: list[list[Any]]) -> StoredFile:
    """Counts of two columns, piece by piece."""
    counts = [ValueCounts(word) for word in COLUMNS]
    for count, values in zip(counts, columns, strict=True):
        array = pa.array(values)
        for start in range(0, len(array), 37):
            count.add(array.slice(start, 37))
    file = StoredFile(FolderStore(path.parent), path.name)
    save_counts(file, COLUMNS, [count.table() for count in counts])
    return file


@pytest.mark.parametrize("files", [1, 3, 70, 300])
def test_counts_are_those_of_a_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr(vocabulary_, "FAN_IN", 8)
    monkeypatch.setattr(vocabulary_, "_MERGE_ROWS", 50)
    random = np.random.default_rng(files)
    towns, codes = Counter[Any](), Counter[Any]()
    paths = []
    for number in range(files):
        town = [None if k == 0 else f"tøwn {k}" for k in random.geometric(0.02, 91) % 300]
        code = [None if k % 50 == 0 else int(k) - 40 for k in random.geometric(0.02, 91)]
        towns.update(value for value in town if value is not None)
        codes.update(value for value in code if value is not None)
        paths.append(counted(tmp_path / f"counts-{number}.arrow", [town, code]))
    rows = 91 * files
    found = vocabulary(paths, COLUMNS, key="k" * 64, rows=rows, rare_below=9, map_over=in_turn)
    for category, counts, kind in zip(found, (towns, codes), ("text", "integer"), strict=True):
        often = {value: n for value, n in counts.items() if n >= 9}
        assert category.kind == kind
        assert category.values == tuple(sorted(often))
        assert category.rest == 1 - sum(often.values()) / rows


def test_a_column_of_keys_is_refused_on_a_worker_and_when_all_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_, "MAX_CATEGORIES", 100)
    words = "Category town has more than 100 different values: it looks like a key"
    with pytest.raises(DataError, match=words):
        counted(tmp_path / "one.arrow", [[f"{k}" for k in range(101)], []])
    paths = [
        counted(tmp_path / f"{part}.arrow", [[f"{part} {k}" for k in range(60)], []])
        for part in range(2)
    ]
    with pytest.raises(DataError, match=words):
        vocabulary(paths, COLUMNS, key="", rows=120, rare_below=1, map_over=in_turn)


def test_a_source_of_many_files_brings_no_values_to_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_, "FAN_IN", 4)
    monkeypatch.setattr("ddlflow.data.prepare.small_ranges.SMALL", 10**9)  # a task a file
    random = np.random.default_rng(0)
    for part in range(21):
        town = [f"town {k}" for k in random.integers(0, 60, 200)]
        table = pa.table({"y": random.integers(0, 2, 200), "town": town, "a": range(200)})
        pq.write_table(table, tmp_path / f"{part:02d}.parquet")
    passes: list[tuple[str, int, int]] = []

    def counting(function: Any, items: list[Any], name: str) -> Iterator[Any]:
        results = [function(item) for item in items]
        texts = max(str(result).count("town ") for result in results)
        passes.append((name, len(items), texts))
        return iter(results)

    spec = Data(source="*.parquet", label="y", rare_below=65)
    found = prepare(spec, "binary", data_root=tmp_path, folder=tmp_path / "ds", map=counting)
    towns = Counter[str]()
    for path in tmp_path.glob("*.parquet"):
        towns.update(pq.read_table(path)["town"].to_pylist())
    assert passes == [("scan", 21, 0), ("categories", 6, 0), ("categories", 2, 0), ("write", 21, 0)]
    often = sorted(value for value, rows in towns.items() if rows >= 65)
    assert 0 < len(often) < 60
    assert found.categories[0].values == tuple(often)
