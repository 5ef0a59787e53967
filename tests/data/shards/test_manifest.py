"""A manifest that is missing, damaged or newer is told, never half believed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddlflow.data.columns import Columns, Label
from ddlflow.data.shards.manifest import NAME, Manifest, Shard, SplitStatistics
from ddlflow.data.shards.statistics import Statistics
from ddlflow.errors import DataError


def _statistics(rows: int, mean: float) -> Statistics:
    one = np.array([1.0])
    whole = np.array([rows])
    return Statistics(
        rows, whole, one * mean, one * 0, one * mean, one * mean, whole * 0, whole * 0, whole
    )


def _manifest() -> Manifest:
    return Manifest(
        columns=Columns(("a",), (), Label("y", "binary", ("no", "yes"))),
        shards=(
            Shard("shards/train/0.arrow", "train", 0, 3, "aa"),
            Shard("shards/test/0.arrow", "test", None, 2, "bb"),
            Shard("shards/train/1.arrow", "train", 1, 1, "cc"),
        ),
        groups=(
            SplitStatistics("train", 0, _statistics(3, 1.0)),
            SplitStatistics("train", 1, _statistics(1, 5.0)),
            SplitStatistics("test", None, _statistics(2, 9.0)),
        ),
        source="f",
        settings={},
        dropped={},
        constant=("a",),
        warnings=("A sentence.",),
    )


def test_round_trip_and_merged_folds(tmp_path: Path) -> None:
    _manifest().save(tmp_path)
    found = Manifest.load(tmp_path)
    assert found.rows("train") == 4
    assert [shard.sha256 for shard in found.shards_of("train")] == ["aa", "cc"]
    assert (found.constant, found.warnings) == (("a",), ("A sentence.",))
    statistics = found.statistics("train")
    assert (statistics.mean[0], statistics.variance[0], statistics.maximum[0]) == (2.0, 3.0, 5.0)
    assert found.statistics("validation").rows == 0
    assert found.digest == _manifest().digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.update(format=99), "has format 99; this ddlflow reads 3"),
        (lambda value: value.pop("format"), "is damaged"),
        (lambda value: value.pop("columns"), "is damaged"),
        (lambda value: value["shards"].pop("fold"), "is damaged"),
        (lambda value: value["shards"]["rows"].pop(), "is damaged"),
        (lambda value: value["shards"]["sha256"].reverse(), "its digest does not fit"),
        (lambda value: value["shards"].update(more=[1, 2, 3]), "is damaged"),
    ],
)
def test_damage_is_told(tmp_path: Path, change: Any, words: str) -> None:
    _manifest().save(tmp_path)
    value = json.loads((tmp_path / NAME).read_text())
    change(value)
    (tmp_path / NAME).write_text(json.dumps(value))
    with pytest.raises(DataError, match=words):
        Manifest.load(tmp_path)


def test_a_half_or_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        Manifest.load(tmp_path)
    (tmp_path / NAME).write_text('{"format": 1, ')
    with pytest.raises(DataError, match="is damaged"):
        Manifest.load(tmp_path)
