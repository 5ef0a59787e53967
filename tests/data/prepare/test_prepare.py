"""From a source to shards: every row once, exact splits, the same bytes for any workers."""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hosts import half_written

from ddlflow.data.prepare import small_ranges
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.prepare.split import quotas
from ddlflow.data.shards.manifest import NAME, Manifest
from ddlflow.data.shards.shard import map_shard, sha256
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.errors import DataError, DdlflowError, InputError
from ddlflow.spec.pipeline import Cv, Data

ROWS = 3000
SPLITS = ("train", "validation", "test")


def in_turn(function: Callable[[Any], Any], items: list[Any], _: str) -> Iterator[Any]:
    return map(function, items)


def backwards(function: Callable[[Any], Any], items: list[Any], _: str) -> Iterator[Any]:
    return reversed([function(item) for item in reversed(items)])


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "y": (random.random(rows) < 0.3).astype(np.int64),
            "a": random.standard_normal(rows).astype(np.float32),
            "b": random.standard_normal(rows).round(3),
            "n": random.integers(-5, 100, rows),
            "city": random.choice(
                ["Bonn", "Turin", "Rome", "Kiev"], rows, p=[0.5, 0.3, 0.199, 0.001]
            ),
        }
    )


def data(**values: Any) -> Data:
    return Data(**({"source": "t.parquet", "label": "y"} | values))


def made(tmp_path: Path, spec: Data, labels: Any = "binary", run: Any = in_turn) -> Manifest:
    return prepare(spec, labels, data_root=tmp_path, folder=tmp_path / "ds", map=run)


def rows_of(folder: Path, manifest: Manifest, split: str) -> dict[str, np.ndarray]:
    parts = [map_shard(folder / s.path) for s in manifest.shards if s.split == split]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bytes_of(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 256)
    monkeypatch.setattr(text, "RANGE_BYTES", 20_000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 5_000)


# ---- what comes out ------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_every_row_once_with_its_values_and_exact_splits(tmp_path: Path, name: str) -> None:
    rows = table()
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=700)
    pa.csv.write_csv(rows, tmp_path / "t.csv")
    spec = data(source=name, split={"validation": 0.1, "test": 0.2})
    manifest = made(tmp_path, spec)
    labels = rows["y"].to_numpy()
    wanted = dict(zip(SPLITS[1:], quotas(np.bincount(labels).tolist(), 0.1, 0.2), strict=True))
    seen = []
    for split in SPLITS:
        found = rows_of(tmp_path / "ds", manifest, split)
        at = found["row"]
        seen.append(at)
        assert manifest.rows(split) == len(at)
        assert np.array_equal(found["label"], labels[at])
        assert found["label"].dtype == np.float32
        for index, column in enumerate(("a", "b", "n")):
            expected = rows[column].to_numpy()[at].astype(np.float32)
            assert np.array_equal(found["features"][:, index], expected)
        codes = np.array(
            [{"Bonn": 1, "Rome": 2, "Turin": 3}.get(c, 0) for c in rows["city"].to_pylist()]
        )
        assert np.array_equal(found["categories"][:, 0], codes[at])
        if split in wanted:
            assert np.array_equal(np.bincount(labels[at]), wanted[split])
        statistics = manifest.statistics(split)  # type: ignore[arg-type]
        exact = found["features"].astype(np.float64)
        assert np.allclose(statistics.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
        assert np.allclose(statistics.variance, exact.var(axis=0), rtol=1e-12)
        assert np.array_equal(statistics.minimum, exact.min(axis=0))
        assert np.array_equal(statistics.maximum, exact.max(axis=0))
        assert np.array_equal(statistics.class_counts, np.bincount(labels[at]))
        assert len(found["row"]) < 50 or not np.all(np.diff(found["row"][:50]) > 0)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(ROWS))
    assert manifest.feature_names == ("a", "b", "n")
    assert (manifest.categories[0].values, manifest.label.classes) == (
        ("Bonn", "Rome", "Turin"),
        (0, 1),
    )
    for shard in manifest.shards:
        assert sha256(tmp_path / "ds" / shard.path) == shard.sha256
    assert sorted(p.name for p in (tmp_path / "ds").iterdir()) == [NAME, "shards"]


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_bytes_for_any_workers_and_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if not shared:
        monkeypatch.setattr(small_ranges, "SMALL", 10**9)  # no range is
    for part in range(4):
        pa.csv.write_csv(table(500, part), tmp_path / f"{part}.csv")
        pq.write_table(table(500, part), tmp_path / f"{part}.parquet")
    for source in ("*.csv", "*.parquet"):
        spec = data(source=source)
        runs: list[Any] = [in_turn, backwards]
        first = None
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(3, context) as three, ProcessPoolExecutor(2, context) as two:
            runs += [lambda f, i, _, pool=pool: pool.map(f, i) for pool in (two, three)]
            for run in runs:
                made(tmp_path, spec, run=run)
                found = bytes_of(tmp_path / "ds")
                first = first or found
                assert found == first
                assert len(found) == (1 if shared else 4) * 3 + 1
                shutil.rmtree(tmp_path / "ds")


def test_the_content_does_not_depend_on_the_format(tmp_path: Path) -> None:
    rows = table(400)
    pq.write_table(rows, tmp_path / "t.parquet")
    pa.csv.write_csv(rows, tmp_path / "t.csv")
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pa.ipc.new_file(file, rows.schema) as out,
    ):
        out.write_table(rows)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows.to_pylist())))
    digests = set()
    for name in ("t.parquet", "t.csv", "t.arrow", "t.jsonl"):
        manifest = made(tmp_path, data(source=name))
        # How later sources are read is what the format gave: text where CSV has it, say.
        columns = replace(manifest.columns, types={})
        digests.add(replace(manifest, columns=columns).digest)
        shutil.rmtree(tmp_path / "ds")
    assert len(digests) == 1


def test_load_gives_what_was_saved(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    manifest = made(tmp_path, data())
    loaded = Manifest.load(tmp_path / "ds")
    assert (loaded.columns, loaded.shards, loaded.digest) == (
        manifest.columns,
        manifest.shards,
        manifest.digest,
    )
    assert loaded.settings == data().model_dump(mode="json")
    assert np.array_equal(loaded.statistics("train").m2, manifest.statistics("train").m2)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_gives_other_splits(tmp_path: Path, seed: int) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    base = rows_of(tmp_path / "ds", made(tmp_path, data(seed=0)), "test")["row"]
    other = rows_of(tmp_path / "ds", made(tmp_path, data(seed=seed)), "test")["row"]
    assert len(base) == len(other)
    assert len(np.intersect1d(base, other)) < len(base) / 3


def test_classes_of_text(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    manifest = made(tmp_path, data(label="city"), "multiclass")
    assert manifest.label.classes == ("Bonn", "Kiev", "Rome", "Turin")
    found = rows_of(tmp_path / "ds", manifest, "train")
    names = np.array(table()["city"].to_pylist())
    assert found["label"].dtype == np.int64
    assert np.array_equal(np.array(manifest.label.classes)[found["label"]], names[found["row"]])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([True, False] * 10, (False, True)),
        ([10.0, 9.0] * 10, (9, 10)),
        ([0.5, 1.0] * 10, (0.5, 1)),
        (["10", "9"] * 10, ("10", "9")),
    ],
)
def test_binary_classes_of_any_type(tmp_path: Path, values: list[Any], classes: Any) -> None:
    for write, name in ((pq.write_table, "t.parquet"), (pa.csv.write_csv, "t.csv")):
        if name == "t.csv" and isinstance(values[0], str):
            continue  # a CSV cannot tell "10" from 10
        write(pa.table({"y": values, "a": range(20)}), tmp_path / name)
        manifest = made(tmp_path, data(source=name))
        assert manifest.label.classes == classes
        found = rows_of(tmp_path / "ds", manifest, "train")
        assert np.array_equal(found["label"], [classes.index(values[r]) for r in found["row"]])


def test_regression_keeps_the_target(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    manifest = made(tmp_path, data(label="b", exclude=["y"]), "regression")
    found = rows_of(tmp_path / "ds", manifest, "train")
    assert np.array_equal(found["label"], table()["b"].to_numpy()[found["row"]].astype(np.float32))
    assert [manifest.rows(s) for s in SPLITS] == [2400, 300, 300]  # type: ignore[arg-type]


def test_a_split_column(tmp_path: Path) -> None:
    names = np.array(SPLITS)[np.arange(ROWS) % 3]
    pq.write_table(table().append_column("part", pa.array(names)), tmp_path / "t.parquet")
    manifest = made(tmp_path, data(split={"column": "part"}))
    for code, split in enumerate(SPLITS):
        assert np.all(rows_of(tmp_path / "ds", manifest, split)["row"] % 3 == code)
    assert "part" not in [*manifest.feature_names, *(c.name for c in manifest.categories)]
    names[5] = "valid"
    pq.write_table(table().append_column("part", pa.array(names)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="Split column part holds valid; allowed are train"):
        made(tmp_path, data(split={"column": "part"}))


@pytest.mark.parametrize("name", ["test.parquet", "test.csv"])
def test_a_test_source_follows_the_source(tmp_path: Path, name: str) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    late = (
        table(100, 9)
        .set_column(4, "city", pa.array(["Oslo"] * 100))
        .select(["city", "n", "y", "b", "a"])
    )
    pq.write_table(late, tmp_path / "test.parquet")
    pa.csv.write_csv(late, tmp_path / "test.csv")
    manifest = made(tmp_path, data(test_source=name))
    found = rows_of(tmp_path / "ds", manifest, "test")
    assert np.array_equal(np.sort(found["row"]), np.arange(ROWS, ROWS + 100))
    assert np.array_equal(found["features"][:, 0], late["a"].to_numpy()[found["row"] - ROWS])
    assert not found["categories"].any()  # Oslo was not seen in training
    assert (manifest.rows("train"), manifest.rows("validation")) == (2700, 300)
    pq.write_table(late.drop_columns(["b"]), tmp_path / "test.parquet")
    if name == "test.parquet":
        with pytest.raises(DataError, match=r"test_source test\.parquet lacks column b"):
            made(tmp_path, data(test_source=name))


def test_no_numeric_feature(tmp_path: Path) -> None:
    pq.write_table(table().select(["y", "city"]), tmp_path / "t.parquet")
    found = rows_of(tmp_path / "ds", made(tmp_path, data()), "train")
    assert set(found) == {"categories", "label", "row"}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("cv", [None, Cv(folds=3)])
def test_the_labels_mean_by_the_rows_weights(tmp_path: Path, cv: Cv | None) -> None:
    random = np.random.default_rng(3)
    weight = np.where(np.arange(ROWS) // 700 == 1, 0.0, random.exponential(3, ROWS))
    label = 1e7 + np.arange(ROWS) + weight  # float32 of it is 1 apart
    rows = pa.table({"y": label.astype(np.float32), "w": weight, "a": range(ROWS)})
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=700)
    spec = data(weight="w")
    manifest = prepare(
        spec, "regression", data_root=tmp_path, folder=tmp_path / "ds", map=in_turn, cv=cv
    )
    assert sum(group.weighted_mean is not None for group in manifest.groups) > 2
    for split in SPLITS:
        found = rows_of(tmp_path / "ds", manifest, split)
        exact = np.average(found["label"].astype(np.float64), weights=found["weight"])
        mean = Manifest.load(tmp_path / "ds").weighted_mean(split)  # type: ignore[arg-type]
        assert mean == pytest.approx(exact, rel=1e-14)
    plain = made(tmp_path, data(exclude=["w"]), "regression")
    assert plain.weighted_mean("train") is None


# ---- missing and infinite values -----------------------------------------------------------


def _gaps(tmp_path: Path, name: str) -> None:
    a = [None if i % 10 == 0 else float("inf") if i % 10 == 1 else i for i in range(200)]
    rows = pa.table(
        {"y": [i % 2 for i in range(200)], "a": pa.array(a, pa.float64()), "b": range(200)}
    )
    write = pq.write_table if name == "t.parquet" else pa.csv.write_csv
    write(rows, tmp_path / name)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_gaps_are_imputed_counted_or_dropped(tmp_path: Path, name: str) -> None:
    _gaps(tmp_path, name)
    manifest = made(tmp_path, data(source=name))
    assert (manifest.replaced, sum(manifest.dropped.values())) == ({"a": 40}, 0)
    found = [manifest.statistics(s) for s in SPLITS]  # type: ignore[arg-type]
    assert sum(int(s.missing[0]) for s in found) == 20
    assert sum(int(s.infinite[0]) for s in found) == 20
    train = rows_of(tmp_path / "ds", manifest, "train")
    assert np.array_equal(np.isnan(train["features"][:, 0]), train["row"] % 10 < 2)
    manifest = made(tmp_path, data(source=name, missing="drop", infinite="drop"))
    assert manifest.dropped == {"where": 0, "label": 0, "missing": 20, "infinite": 20}
    assert manifest.dropped_columns == {"missing": {"a": 20}, "infinite": {"a": 20}}
    assert manifest.warnings == (
        "Rows were dropped: 20 as a feature is missing (a 20); 20 as a feature is infinite (a 20).",
    )
    kept = np.concatenate([rows_of(tmp_path / "ds", manifest, s)["row"] for s in SPLITS])
    assert np.array_equal(np.sort(kept), [i for i in range(200) if i % 10 > 1])
    assert [manifest.rows(s) for s in SPLITS] == [128, 16, 16]  # type: ignore[arg-type]
    told = {key: f"{key} values: a (20); data.{key} is refuse" for key in ("missing", "infinite")}
    for key, words in told.items():
        with pytest.raises(DataError, match=re.escape(words)) as caught:
            made(tmp_path, data(source=name, **{key: "refuse"}))
        assert "data.missing" not in str(caught.value) or "data.infinite" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        made(tmp_path, data(source=name, missing="refuse", infinite="refuse"))
    assert all(words in str(caught.value) for words in told.values())


@pytest.mark.parametrize(
    "values", [[None, 0.0, 1.0], [float("nan"), 0.0, 1.0], [float("inf"), 0, 1]]
)
@pytest.mark.parametrize("labels", ["binary", "regression"])
def test_a_useless_label_is_refused_or_dropped(
    tmp_path: Path, values: list[Any], labels: str
) -> None:
    pq.write_table(pa.table({"y": values * 20, "a": range(60)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"missing or infinite in some rows: y \(20\)"):
        made(tmp_path, data(), labels)
    with pytest.raises(DataError, match=r"Set data\.label_missing: drop"):
        made(tmp_path, data(missing="drop"), labels)  # that is of the features
    manifest = made(tmp_path, data(label_missing="drop"), labels)
    assert manifest.dropped["label"] == 20
    assert manifest.dropped_columns == {"label": {"y": 20}}
    assert sum(shard.rows for shard in manifest.shards) == 40


def test_constant_features_are_kept_and_told(tmp_path: Path) -> None:
    rows = pa.table(
        {"y": [0, 1] * 50, "a": [7.0] * 100, "b": range(100), "key": list(map(str, range(100)))}
    )
    pq.write_table(rows, tmp_path / "t.parquet")
    manifest = made(tmp_path, data())
    assert manifest.constant == ("a", "key")
    constant, rare = manifest.warnings
    assert constant.startswith("Constant in every training row, so of no use: a. ")
    assert rare.startswith("No value is in data.rare_below (10) rows or more, ")
    assert "of no use: key. Lower data.rare_below, or list it in data.exclude." in rare


@pytest.mark.parametrize("start", [2**60, 2**63])
def test_large_whole_numbers_of_json_may_differ_though_constant(tmp_path: Path, start: int) -> None:
    lines = [f'{{"k": {start + i % 20}, "c": 5, "a": {i}, "y": {i % 2}}}' for i in range(400)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    manifest = made(tmp_path, data(source="t.jsonl"))
    assert manifest.constant == ("k", "c")
    constant, blurred = manifest.warnings
    assert constant == ("Constant in every training row, so of no use: c. List it in data.exclude.")
    assert blurred.startswith("Constant as float64 in every training row: k. Whole numbers from 2^")
    taken = [made(tmp_path, data(source="t.jsonl", exclude=["c"], text=["k"]))]
    if start < 2**63:
        taken.append(made(tmp_path, data(source="t.jsonl", exclude=["c"], categorical=["k"])))
    assert all(len(one.columns.categories[0].values) == 20 for one in taken)


def test_large_whole_numbers_of_parquet_are_told_apart(tmp_path: Path) -> None:
    rows = {"y": [0, 1] * 50, "k": [2**60] * 100, "near": range(2**60, 2**60 + 100)}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    (constant,) = made(tmp_path, data()).warnings
    assert constant.startswith("Constant in every training row, so of no use: k. ")


# ---- what is wrong: one sentence, nothing left ----------------------------------------------


@pytest.mark.parametrize(
    ("columns", "labels", "words"),
    [
        ({"y": [1] * 60}, "binary", r"one class alone \(1: 60 rows\)"),
        ({"y": [0, 1, 2] * 20}, "binary", r"has 3 classes \(0: 20, 1: 20, 2: 20 rows\)"),
        ({"y": ["x"] * 60}, "multiclass", "one class alone"),
        ({"y": [2.5] * 60}, "regression", "Label y is 2.5 in every row: there is nothing to learn"),
        (
            {"y": list(range(60)), "a": [None] * 60},
            "regression",
            "Missing in every training row: a",
        ),
        ({"y": [0] * 59 + [None]}, "binary", r"missing or infinite in some rows: y \(1\)"),
    ],
)
def test_refused_content(tmp_path: Path, columns: dict[str, Any], labels: str, words: str) -> None:
    rows = {"a": pa.array(range(60), pa.float64())} | columns
    if isinstance(rows["a"], list):
        rows["a"] = pa.array(rows["a"], pa.float64())
    pq.write_table(pa.table(rows | {"b": range(60)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=words):
        made(tmp_path, data(), labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet"]


def test_too_many_classes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": range(10_001), "a": range(10_001)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="more than 10000 classes"):
        made(tmp_path, data(), "multiclass")


def test_a_header_alone_holds_no_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y,a\n")
    with pytest.raises(DataError, match="holds no row"):
        made(tmp_path, data(source="t.csv"))


def test_text_in_a_late_row_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SCHEMA_BYTES", 64)
    (tmp_path / "t.csv").write_text("y,a\n" + "0,1\n1,2\n" * 50 + "0,many\n")
    with pytest.raises(DataError, match=r"t\.csv, line 102: column a holds 'many'"):
        made(tmp_path, data(source="t.csv"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv"]


# ---- stops and restarts ---------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
@pytest.mark.parametrize("stop_at", [("scan", 2), ("write", 0), ("write", 3)])
def test_a_second_start_goes_on_and_doubles_nothing(
    tmp_path: Path, name: str, stop_at: tuple[str, int]
) -> None:
    pq.write_table(table(), tmp_path / "t.parquet", row_group_size=500)
    pa.csv.write_csv(table(), tmp_path / "t.csv")
    spec = data(source=name)
    whole = made(tmp_path, spec).digest
    expected = bytes_of(tmp_path / "ds")
    shutil.rmtree(tmp_path / "ds")

    class KilledError(Exception):
        pass

    def dying(function: Any, items: list[Any], stage: str) -> Iterator[Any]:
        for index, item in enumerate(items):
            if (stage, index) == stop_at:
                raise KilledError
            yield function(item)

    with pytest.raises(KilledError):
        made(tmp_path, spec, run=dying)
    assert not (tmp_path / "ds" / NAME).exists()
    left = tmp_path / "ds" / "shards" / "train"
    left.mkdir(parents=True, exist_ok=True)
    half = half_written(left / "00009-00000.arrow")
    kept = {p: p.stat().st_mtime_ns for p in left.glob("*.arrow")}
    assert made(tmp_path, spec).digest == whole
    assert not half.exists()
    assert bytes_of(tmp_path / "ds") == expected
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())


def test_other_settings_use_nothing_of_a_stopped_prepare(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet", row_group_size=1000)
    fresh = made(tmp_path, data(seed=3)).digest
    shutil.rmtree(tmp_path / "ds")

    def dying(function: Any, items: list[Any], stage: str) -> Iterator[Any]:
        yield function(items[0])
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, ValueError)):
        made(tmp_path, data(seed=4), run=dying)
    assert made(tmp_path, data(seed=3)).digest == fresh


def _limited(task: Any) -> str:
    """Runs in a process of its own, which may write no file above 20 kB."""
    from ddlflow.data.prepare.write import write_ranges

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        write_ranges(task)
    except DdlflowError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def test_a_full_disk_leaves_no_half_written_shard(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")

    class StoppedError(Exception):
        pass

    def limited(function: Any, items: list[Any], stage: str) -> Iterator[Any]:
        if stage == "scan":
            yield from map(function, items)
            return
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
            raise StoppedError(next(pool.map(_limited, items)))

    with pytest.raises(StoppedError, match=r"DdlflowError: .*could not be written: File too large"):
        made(tmp_path, data(), run=limited)
    assert not list((tmp_path / "ds").rglob("*.tmp"))
    assert not list((tmp_path / "ds" / "shards").rglob("*.arrow"))
    assert made(tmp_path, data()).rows("train") == 2400


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_full_file_system(tmp_path: Path, mounted: Path, name: str) -> None:
    rows = table(6000).drop_columns(["city"])
    pq.write_table(rows, tmp_path / "t.parquet")
    pa.csv.write_csv(rows, tmp_path / "t.csv")
    with pytest.raises(DdlflowError, match=os.strerror(errno.ENOSPC)) as caught:
        prepare(data(source=name), "binary", data_root=tmp_path, folder=mounted / "ds", map=in_turn)
    assert not isinstance(caught.value, InputError)
    assert not list(mounted.rglob("*.tmp"))
    assert not (mounted / "ds" / NAME).exists()


def test_a_read_only_file_system(tmp_path: Path, mounted: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        prepare(data(), "binary", data_root=tmp_path, folder=mounted / "ds", map=in_turn)


# ---- real input ----------------------------------------------------------------------------


def test_real_events(tmp_path: Path) -> None:
    root = os.environ.get("DDLFLOW_REAL_DATA")
    if not root:
        pytest.skip("DDLFLOW_REAL_DATA names no folder of real data")
    rows = pq.read_table(Path(root) / "higgs-sample" / "train.parquet")
    spec = data(
        source="higgs-sample/train.parquet", label=rows.schema.names[0], split={"test": 0.1}
    )
    if "label" in rows.schema.names:
        spec = spec.model_copy(update={"label": "label"})
    manifest = prepare(spec, "binary", data_root=Path(root), folder=tmp_path / "ds", map=in_turn)
    assert len(manifest.feature_names) == 28
    assert sum(shard.rows for shard in manifest.shards) == rows.num_rows
    found = rows_of(tmp_path / "ds", manifest, "train")
    for index, name in enumerate(manifest.feature_names):
        values = rows[name].to_numpy()[found["row"]]
        assert np.array_equal(
            found["features"][:, index], values.astype(np.float32), equal_nan=True
        )
