"""Columns that float32 alone would not resolve: shifted in float64, in every format, and told."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.parquet as pq
import pytest

from ddlflow.data.columns import Columns
from ddlflow.data.offsets import offset_of, thinned
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.spec.pipeline import Data

MS = 1_764_000_000_000
RANDOM = np.random.default_rng(5)


def prepared(root: Path, name: str, labels: Any = "binary", **spec: Any) -> Manifest:
    data = Data(source=name, label="y", **spec)
    return prepare(data, labels, data_root=root, folder=root / "d", map=lambda f, i, _: map(f, i))


def rows_of(root: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """All rows of the shards in the source's order."""
    shards = [map_shard(root / "d" / shard.path) for shard in manifest.shards]
    order = np.argsort(np.concatenate([shard["row"] for shard in shards]))
    return {
        name: np.concatenate([shard[name] for shard in shards])[order]
        for name in ("features", "label")
    }


def as_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=100_000)


def as_jsonl(table: pa.Table, path: Path) -> None:
    table.to_pandas().to_json(path, orient="records", lines=True, double_precision=15)


FORMATS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "parquet": as_parquet,
    "arrow": lambda t, path: pa_feather.write_feather(t, path, compression="uncompressed"),
    "csv": pa_csv.write_csv,
    "jsonl": as_jsonl,
}


def times(rows: int) -> dict[str, Any]:
    near = RANDOM.integers(0, 60_000, rows)
    return {
        "t_ms": MS + near,
        "t_s": (MS + near) / 1000,
        "zero": np.where(RANDOM.random(rows) < 0.7, 0, MS + near),  # most are 0: missing
        "year": RANDOM.integers(2019, 2026, rows),
        "price": 300_000 + 50_000 * RANDOM.standard_normal(rows),
        "flag": RANDOM.integers(0, 2, rows),
        "y": (near > 30_000).astype(np.int64),
    }


# ---- the rule ------------------------------------------------------------------------------


def test_only_what_float32_does_not_resolve_is_shifted() -> None:
    columns = {name: offset_of(thinned([], np.asarray(v))) for name, v in times(9000).items()}
    assert [name for name, offset in columns.items() if offset] == ["t_ms", "t_s", "zero"]
    for name in ("t_ms", "zero"):
        assert MS <= columns[name] < MS + 60_000
        assert isinstance(columns[name], int)


@pytest.mark.parametrize("stray", [0.0, -999.0, 1e300, float(MS * 50)])
def test_strays_do_not_move_the_centre(stray: float) -> None:
    values = (MS + RANDOM.integers(0, 60_000, 5000)).astype(float)
    values[RANDOM.random(5000) < 0.05] = stray
    assert MS <= offset_of(thinned([], values)) < MS + 60_000


def test_values_that_float32_holds_exactly_stay() -> None:
    whole = 16_000_000 + RANDOM.integers(0, 3, 500)
    assert offset_of(thinned([], whole)) == 0
    assert offset_of(thinned([], np.full(500, 2.5))) == 0
    assert offset_of([]) == 0
    assert offset_of(thinned([], np.array([np.nan, np.inf]))) == 0


# ---- into the shards -----------------------------------------------------------------------


@pytest.mark.parametrize("format_name", FORMATS)
def test_shards_hold_the_exact_difference(tmp_path: Path, format_name: str) -> None:
    source = times(3000)
    FORMATS[format_name](pa.table(source), tmp_path / f"t.{format_name}")
    manifest = prepared(tmp_path, f"t.{format_name}")
    columns = manifest.columns
    assert list(columns.offsets) == ["t_ms", "t_s", "zero"]
    features = rows_of(tmp_path, manifest)["features"]
    for index, name in enumerate(columns.numeric):
        offset = Fraction(columns.offsets.get(name, 0))
        exact = [np.float32(float(Fraction(value.item()) - offset)) for value in source[name]]
        near = 0 if format_name != "jsonl" else 1e-3  # pandas writes 15 digits
        np.testing.assert_allclose(features[:, index], exact, rtol=1e-6 if near else 0, atol=near)
    assert manifest.constant == ()


def test_more_rows_than_any_buffer_and_ranges_out_of_turn(tmp_path: Path) -> None:
    """300,000 rows in three ranges, times in order, the first range without any."""
    rows = 300_000
    time = MS * 1_000_000 + np.arange(rows) * 1_000_003  # nanoseconds
    time = np.where(np.arange(rows) < 120_000, 0, time)
    source = {"t": time, "x": RANDOM.standard_normal(rows), "y": np.arange(rows) % 2}
    as_parquet(pa.table(source), tmp_path / "t.parquet")

    def backwards(function: Any, items: Any, _: str) -> list[Any]:
        return [function(item) for item in reversed(items)][::-1]

    spec = Data(source="t.parquet", label="y")
    there = prepare(spec, "binary", data_root=tmp_path, folder=tmp_path / "d", map=backwards)
    back = prepared(tmp_path, "t.parquet")
    assert there.columns == back.columns
    assert [s.sha256 for s in there.shards] == [s.sha256 for s in back.shards]
    offset = int(back.columns.offsets["t"])
    found = rows_of(tmp_path, back)["features"]
    np.testing.assert_array_equal(found[:, 0], (time - offset).astype(np.float64).astype("f4"))
    np.testing.assert_array_equal(found[:, 1], source["x"].astype("f4"))


def test_whole_numbers_of_64_bits_with_gaps(tmp_path: Path) -> None:
    near = RANDOM.integers(0, 100, 2000)
    big = pa.array([2**64 - 1000 + int(v) for v in near], pa.uint64())
    gaps = pa.array([None if v < 5 else -(2**62) + int(v) for v in near], pa.int64())
    money = pa.array([None if v < 3 else 10**15 + int(v) for v in near], pa.decimal128(20, 2))
    table = pa.table({"big": big, "gaps": gaps, "money": money, "y": (near > 50).astype(int)})
    as_parquet(table, tmp_path / "t.parquet")
    manifest = prepared(tmp_path, "t.parquet")
    features = rows_of(tmp_path, manifest)["features"]
    for index, name in enumerate(manifest.columns.numeric):
        offset = int(manifest.columns.offsets[name])
        for value, found in zip(table[name].to_pylist(), features[:, index], strict=True):
            assert np.isnan(found) if value is None else found == int(value) - offset


def test_a_regressions_label_is_shifted_too(tmp_path: Path) -> None:
    x = RANDOM.standard_normal(2000)
    y = 1e9 + x
    for name, write in FORMATS.items():
        write(pa.table({"x": x, "y": y}), tmp_path / f"t.{name}")
        manifest = prepared(tmp_path, f"t.{name}", "regression")
        label = rows_of(tmp_path, manifest)["label"]
        assert label.dtype == np.float32
        # A float64 of 1e9 has steps of 1.2e-7; JSON was written with 15 digits.
        again = label.astype(np.float64) + manifest.label.offset
        np.testing.assert_allclose(again - 1e9, x, atol=2e-6)
        known = manifest.label_statistics("train")
        assert float(np.sqrt(known.variance[0])) == pytest.approx(x.std(), rel=0.1)


def test_label_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    y = np.round(40 * RANDOM.standard_normal(2000), 1)
    as_parquet(pa.table({"x": y * 2, "y": y}), tmp_path / "t.parquet")
    manifest = prepared(tmp_path, "t.parquet", "regression")
    assert manifest.label.offset == 0
    for split in ("train", "validation", "test"):
        shards = [map_shard(tmp_path / "d" / s.path) for s in manifest.shards_of(split)]
        label = np.concatenate([shard["label"] for shard in shards]).astype(np.float64)
        found = Manifest.load(tmp_path / "d").label_statistics(split)
        assert (found.rows, found.count[0]) == (len(label), len(label))
        assert found.mean[0] == pytest.approx(label.mean())
        assert found.variance[0] == pytest.approx(label.var())
        assert (found.minimum[0], found.maximum[0]) == (label.min(), label.max())


# ---- what is constant, and what is not resolved --------------------------------------------


def test_constant_is_what_the_source_says(tmp_path: Path) -> None:
    """One row in ten thousand differs, by less than float32 has there."""
    rows = 60_000
    rare = np.full(rows, float(MS))
    rare[RANDOM.integers(0, rows, 6)] += 1
    source = {"rare": rare, "same": np.full(rows, 0.1), "y": np.arange(rows) % 2}
    as_parquet(pa.table(source), tmp_path / "t.parquet")
    manifest = prepared(tmp_path, "t.parquet")
    assert manifest.constant == ("same",)
    known = manifest.statistics("train")
    assert known.maximum[0] - known.minimum[0] == 1


def test_what_no_offset_resolves_is_said(tmp_path: Path) -> None:
    rows = 6000
    near = RANDOM.integers(0, 1000, rows).astype(np.int64)
    apart = np.where(RANDOM.random(rows) < 0.5, near, near + 4 * 10**17)
    zero = np.where(RANDOM.random(rows) < 0.1, 0, MS + near)
    source = {"apart": apart, "zero": zero, "fine": MS + near, "y": near % 2}
    as_parquet(pa.table(source), tmp_path / "t.parquet")
    warnings = " ".join(prepared(tmp_path, "t.parquet").warnings)
    assert "Column apart" in warnings
    assert "Column zero" in warnings
    assert "Column fine" not in warnings
    assert "Leave empty what stands for a missing value" in warnings


def test_heavy_tails_and_skewed_numbers_are_not_warned_of(tmp_path: Path) -> None:
    rows = 6000
    z = RANDOM.standard_normal(rows)
    source = {
        "lognormal": np.exp(4 * z),
        "counts": RANDOM.poisson(0.2, rows),
        "ids": RANDOM.integers(0, 2**62, rows),
        "noise": np.where(z > 0, 0.3, 0.1 + 0.2),  # the same number, but for its last bit
        "y": (z > 0).astype(int),
    }
    as_parquet(pa.table(source), tmp_path / "t.parquet")
    manifest = prepared(tmp_path, "t.parquet")
    assert manifest.columns.offsets.keys() <= {"noise"}
    assert [w for w in manifest.warnings if w.startswith("Column")] == []


# ---- where the model is applied ------------------------------------------------------------


def test_every_later_table_is_shifted_alike(tmp_path: Path) -> None:
    source = times(500)
    as_parquet(pa.table(source), tmp_path / "t.parquet")
    made = prepared(tmp_path, "t.parquet").columns
    columns = Columns.from_json(made.to_json())
    frame = pa.table(source).to_pandas()
    expected = columns.encode(pa.RecordBatch.from_pandas(frame)).features
    ms = columns.numeric.index("t_ms")
    exact = source["t_ms"] - int(columns.offsets["t_ms"])
    np.testing.assert_array_equal(expected[:, ms], exact.astype("f4"))
    as_floats = frame.astype({"t_ms": "float64", "zero": "float64"})
    found = columns.encode(pa.RecordBatch.from_pandas(as_floats)).features
    np.testing.assert_array_equal(found, expected)
    seconds = columns.numeric.index("t_s")  # learned from fractions, given as whole numbers
    whole = columns.encode(pa.RecordBatch.from_pandas(frame.astype({"t_s": "int64"}))).features
    less = frame["t_s"].astype("int64") - columns.offsets["t_s"]
    np.testing.assert_array_equal(whole[:, seconds], less.astype("f4"))
    frame["t_ms"] = frame["t_ms"].astype("Int64")
    frame.loc[3, "t_ms"] = None
    found = columns.encode(pa.RecordBatch.from_pandas(frame)).features
    assert np.isnan(found[3, ms])
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))
