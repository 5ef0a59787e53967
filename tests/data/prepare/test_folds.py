"""Folds of a prepared data set: scikit-learn's own invariants, any workers, and bad input."""

import hashlib
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedKFold, TimeSeriesSplit

from ddlflow.data.prepare import fold_keys
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import NAME, Manifest, Shard
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Cv, Data

ROWS = 600
KINDS: list[dict[str, Any]] = [
    {"kind": "plain"},
    {"kind": "stratified", "folds": 3},
    {"kind": "group", "by": "city"},
    {"kind": "group", "by": "shop", "folds": 4},
    {"kind": "time", "by": "when", "gap": 3.5, "window": 2},
    {"kind": "time", "by": "day"},
    {"kind": "predefined", "by": "fold"},
]


def in_turn(function: Callable[[Any], Any], items: list[Any], _: str) -> Iterator[Any]:
    return map(function, items)


def backwards(function: Callable[[Any], Any], items: list[Any], _: str) -> Iterator[Any]:
    return reversed([function(item) for item in reversed(items)])


def table(rows: int = ROWS, classes: int = 2, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    days = [date(2026, 1, 1) + timedelta(days=int(d)) for d in random.integers(0, 40, rows)]
    return pa.table(
        {
            "y": random.integers(0, classes, rows),
            "a": random.standard_normal(rows).astype(np.float32),
            "b": random.standard_normal(rows).round(3),
            "city": random.choice([f"c{i}" for i in range(12)], rows),
            "shop": 2**60 + random.integers(0, 30, rows) ** 2,
            "when": random.permutation(rows) / 2 + 2**31,  # float32 cannot tell them apart
            "day": days,
            "fold": random.choice(["left", "middle", "right"], rows, p=[0.5, 0.3, 0.2]),
        }
    )


def data(**values: Any) -> Data:
    keys = [] if "features" in values else ["city", "shop", "when", "day", "fold"]
    return Data(**({"source": "t.parquet", "label": "y", "exclude": keys} | values))


def made(
    folder: Path, spec: Data, cv: Cv | None, labels: Any = "binary", run: Any = in_turn
) -> Any:
    return prepare(spec, labels, data_root=folder, folder=folder / "ds", map=run, cv=cv)


def prepared(folder: Path, rows: pa.Table, cv: Cv, labels: Any = "binary", **values: Any) -> Any:
    pq.write_table(rows, folder / "t.parquet", row_group_size=max(1, len(rows) // 3))
    return made(folder, data(**values), cv, labels)


def rows_of(folder: Path, shards: list[Shard], name: str = "row") -> np.ndarray:
    if not shards:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([map_shard(folder / "ds" / shard.path)[name] for shard in shards])


def folds_of(folder: Path, manifest: Manifest) -> list[tuple[np.ndarray, np.ndarray]]:
    """The sorted source rows of each fold: trained on, validated on."""
    return [
        tuple(np.sort(rows_of(folder, shards)) for shards in manifest.shards_of_fold(k))  # type: ignore[misc]
        for k in range(manifest.num_folds)
    ]


def bytes_of(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 90)
    monkeypatch.setattr(text, "RANGE_BYTES", 12_000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 3_000)


# ---- what the folds are --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The least populated class")  # scikit-learn's
@given(
    rows=st.integers(60, 200),
    classes=st.integers(2, 5),
    folds=st.integers(2, 7),
    kind=st.sampled_from(["plain", "stratified", "group"]),
    held_out=st.sampled_from([0.0, 0.15]),
)
def test_every_training_row_validates_once(
    rows: int, classes: int, folds: int, kind: str, held_out: float
) -> None:
    source = table(rows, classes)
    labels = source["y"].to_numpy()
    cv = Cv(folds=folds, kind=kind, by="city" if kind == "group" else None)  # type: ignore[arg-type]
    with TemporaryDirectory() as name:
        folder = Path(name)
        split = {"validation": held_out, "test": held_out}
        manifest = prepared(folder, source, cv, "multiclass", split=split)
        found = folds_of(folder, manifest)
        train = np.sort(rows_of(folder, manifest.shards_of("train")))
    assert manifest.num_folds == folds
    assert np.array_equal(np.sort(np.concatenate([v for _, v in found])), train)
    for trained, validated in found:
        assert np.array_equal(np.sort(np.concatenate([trained, validated])), train)
    sizes = [len(validated) for _, validated in found]
    if kind == "group":
        groups = np.array(source["city"].to_pylist())
        for trained, validated in found:
            assert not set(groups[trained]) & set(groups[validated])
        theirs = GroupKFold(folds).split(train, groups=groups[train])
        assert sorted(sizes) == sorted(len(test) for _, test in theirs)
        return
    assert np.ptp(sizes) <= 1
    if kind == "stratified":
        counts = np.array([np.bincount(labels[v], minlength=classes) for _, v in found])
        assert np.ptp(counts, axis=0).max() <= 1
        splits = [
            labels[train][test] for _, test in StratifiedKFold(folds).split(train, labels[train])
        ]
        theirs_of = np.array([np.bincount(part, minlength=classes) for part in splits])
        assert np.array_equal(np.sort(counts, axis=0), np.sort(theirs_of, axis=0))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("by", ["when", "day", "stamp"])
@pytest.mark.parametrize(("gap", "window"), [(0, None), (4, None), (0, 2), (2.5, 1)])
def test_time_folds_train_on_what_came_before(
    tmp_path: Path, by: str, gap: float, window: int | None
) -> None:
    source = table()
    days = np.array([d.toordinal() for d in source["day"].to_pylist()], dtype=np.float64)
    stamps = pa.array(
        [datetime.combine(d, datetime.min.time(), UTC) for d in source["day"].to_pylist()]
    )
    source = source.append_column("stamp", stamps)
    times = {"when": source["when"].to_numpy(), "day": days, "stamp": days * 86_400}[by]
    given_gap = gap * 86_400 if by == "stamp" else gap
    cv = Cv(kind="time", by=by, gap=given_gap, window=window, folds=5)
    manifest = prepared(
        tmp_path, source, cv, exclude=["city", "shop", "when", "day", "fold", "stamp"]
    )
    found = folds_of(tmp_path, manifest)
    train = rows_of(tmp_path, manifest.shards_of("train"))
    starts = [times[validated].min() for _, validated in found]
    blocks = [
        times[train] < starts[0],
        *(
            (times[train] >= a) & (times[train] < b)
            for a, b in zip(starts, [*starts[1:], np.inf], strict=True)
        ),
    ]
    # 480 rows in 6 blocks of 80; up to about 20 rows share a day, and none of them are parted.
    assert all(abs(block.sum() - 80) <= (1 if by == "when" else 20) for block in blocks)
    for k, (trained, validated) in enumerate(found):
        assert np.array_equal(validated, np.sort(train[blocks[k + 1]]))
        first = starts[k - window] if window and k >= window else -np.inf
        wanted = (times[train] >= first) & (times[train] < starts[k])
        wanted &= starts[k] - times[train] > given_gap if gap else True
        assert np.array_equal(trained, np.sort(train[wanted]))


@pytest.mark.parametrize(("gap", "window"), [(0, None), (7, None), (0, 2), (7, 2)])
def test_time_folds_equal_scikit_learns(tmp_path: Path, gap: int, window: int | None) -> None:
    # Sizes that divide, times that are all different and one apart: then both mean the same.
    rows = np.random.default_rng(2).permutation(120)
    source = table(120).append_column("t", pa.array(rows))
    cv = Cv(kind="time", by="t", gap=gap, window=window)
    manifest = prepared(tmp_path, source, cv, split={"validation": 0, "test": 0})
    at = np.argsort(rows)
    # Its largest size counts rows after the gap; ours is blocks, of which the gap takes rows.
    largest = window * 20 - gap if window else None
    theirs = list(TimeSeriesSplit(5, gap=gap, max_train_size=largest).split(at))
    for k, (trained, validated) in enumerate(folds_of(tmp_path, manifest)):
        if window is None or k >= window:
            assert np.array_equal(trained, np.sort(at[theirs[k][0]]))
        assert np.array_equal(validated, np.sort(at[theirs[k][1]]))


def test_predefined_folds_are_those_of_the_column(tmp_path: Path) -> None:
    source = table()
    manifest = prepared(tmp_path, source, Cv(kind="predefined", by="fold"))
    assert [fold.name for fold in manifest.folds] == ["left", "middle", "right"]
    names = np.array(source["fold"].to_pylist())
    for fold, (_, validated) in zip(manifest.folds, folds_of(tmp_path, manifest), strict=True):
        assert set(names[validated]) == {fold.name}
    numbers = source.append_column("n", pa.array(np.arange(ROWS) % 11 - 1))
    manifest = prepared(tmp_path, numbers, Cv(kind="predefined", by="n", folds=11))
    assert [fold.name for fold in manifest.folds] == [str(n) for n in range(-1, 10)]


@pytest.mark.parametrize("cv", KINDS)
def test_statistics_of_a_fold_are_those_of_its_training_rows(
    tmp_path: Path, cv: dict[str, Any]
) -> None:
    source = table()
    labels = source["y"].to_numpy()
    manifest = prepared(tmp_path, source, Cv(**cv))
    for k, (trained, _) in enumerate(folds_of(tmp_path, manifest)):
        statistics = manifest.fold_statistics(k)
        for column, name in enumerate(("a", "b")):
            values = source[name].to_numpy()[trained].astype(np.float32).astype(np.float64)
            assert np.isclose(statistics.mean[column], values.mean(), rtol=1e-12, atol=1e-14)
            assert np.isclose(statistics.variance[column], values.var(), rtol=1e-12)
            assert statistics.minimum[column] == values.min()
        assert statistics.rows == len(trained)
        assert np.array_equal(statistics.class_counts, np.bincount(labels[trained]))


@pytest.mark.usefixtures("small_pieces")
def test_a_column_of_splits_leaves_its_training_rows_to_the_folds(tmp_path: Path) -> None:
    source = table(classes=3)
    names = np.random.default_rng(5).choice(
        ["train", "validation", "test"], ROWS, p=[0.6, 0.2, 0.2]
    )
    source = source.append_column("part", pa.array(names))
    for kind in ("plain", "stratified"):
        cv = Cv(kind=kind, folds=4)  # type: ignore[arg-type]
        manifest = prepared(tmp_path, source, cv, "multiclass", split={"column": "part"})
        found = folds_of(tmp_path, manifest)
        train = np.flatnonzero(names == "train")
        assert np.array_equal(np.sort(np.concatenate([v for _, v in found])), train)
        assert np.ptp([len(v) for _, v in found]) <= 1
        counts = [np.bincount(source["y"].to_numpy()[v]) for _, v in found]
        assert (np.ptp(counts, axis=0).max() <= 1) == (kind == "stratified")


def test_regression_and_dropped_rows(tmp_path: Path) -> None:
    source = table()
    holes = [None if i % 7 == 0 else float(i) for i in range(ROWS)]
    source = source.set_column(1, "a", pa.array(holes))
    manifest = prepared(tmp_path, source, Cv(), "regression", label="b", missing="drop")
    found = folds_of(tmp_path, manifest)
    assert manifest.cv == {"kind": "plain", "folds": 5, "seed": 7}
    everything = np.concatenate([v for _, v in found])
    assert not np.any(everything % 7 == 0)
    assert len(everything) == manifest.rows("train") == len(np.unique(everything))
    assert np.ptp([len(v) for _, v in found]) <= 1
    by_time = prepared(tmp_path, source, Cv(kind="time", by="when"), label="y", missing="drop")
    assert not any(np.any(rows % 7 == 0) for fold in folds_of(tmp_path, by_time) for rows in fold)


def test_repeats_deal_the_same_rows_anew(tmp_path: Path) -> None:
    cv = Cv(repeats=2)
    first, second = (prepared(tmp_path, table(), cv.of_repeat(r)) for r in range(2))
    assert [s.rows for s in first.shards_of("test")] == [s.rows for s in second.shards_of("test")]
    assert first.digest != second.digest


# ---- the same for any workers and pieces ---------------------------------------------------


def test_the_same_bytes_for_any_workers(tmp_path: Path) -> None:
    for part in range(4):
        pq.write_table(table(150, seed=part), tmp_path / f"{part}.parquet")
        pa.csv.write_csv(table(150, seed=part), tmp_path / f"{part}.csv")
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(3, context) as three:
        runs: list[Any] = [in_turn, backwards, lambda f, items, _: three.map(f, items)]
        for source, kind in itertools.product(("*.parquet", "*.csv"), KINDS):
            found = []
            for run in runs:
                made(tmp_path, data(source=source), Cv(**kind), run=run)
                found.append(bytes_of(tmp_path / "ds"))
                shutil.rmtree(tmp_path / "ds")
            assert found[0] == found[1] == found[2]
            assert not any("work" in path for path in found[0])


@pytest.mark.parametrize("cv", KINDS)
def test_the_same_folds_for_any_pieces_and_format(
    tmp_path: Path, cv: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    pa.csv.write_csv(table(), tmp_path / "t.csv")
    for piece_rows in (1 << 18, 64):
        monkeypatch.setattr(source_module, "PIECE_ROWS", piece_rows)
        found.append(folds_of(tmp_path, prepared(tmp_path, table(), Cv(**cv))))
        found.append(folds_of(tmp_path, made(tmp_path, data(source="t.csv"), Cv(**cv))))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("cv", [KINDS[2], KINDS[4]])
@pytest.mark.parametrize("stage", ["folds", "write"])
def test_a_prepare_that_was_stopped_goes_on(tmp_path: Path, cv: dict[str, Any], stage: str) -> None:
    pa.csv.write_csv(table(), tmp_path / "t.csv")
    spec = data(source="t.csv")
    made(tmp_path, spec, Cv(**cv))
    whole = bytes_of(tmp_path / "ds")
    shutil.rmtree(tmp_path / "ds")

    def stopped(function: Callable[[Any], Any], items: list[Any], name: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if name == stage and number == 2:
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, spec, Cv(**cv), run=stopped)
    again: dict[str, int] = {}

    def counting(function: Callable[[Any], Any], items: list[Any], name: str) -> Iterator[Any]:
        again[name] = len(items)
        return map(function, items)

    made(tmp_path, spec, Cv(**cv), run=counting)
    assert bytes_of(tmp_path / "ds") == whole
    assert again["folds"] == again["write"] > 3


def test_other_folds_do_not_take_over_finished_ranges(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")

    def unsealed(function: Callable[[Any], Any], items: list[Any], name: str) -> Iterator[Any]:
        yield from map(function, items)
        if name == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, data(), Cv(folds=3), run=unsealed)
    manifest = made(tmp_path, data(), Cv(folds=4))
    assert {shard.fold for shard in manifest.shards_of("train")} == {0, 1, 2, 3}
    assert len(list((tmp_path / "ds" / "shards" / "train").iterdir())) == 4


# ---- the manifest --------------------------------------------------------------------------


@pytest.mark.parametrize("cv", KINDS)
def test_load_gives_what_was_saved(tmp_path: Path, cv: dict[str, Any]) -> None:
    manifest = prepared(tmp_path, table(), Cv(**cv))
    loaded = Manifest.load(tmp_path / "ds")
    assert (loaded.folds, loaded.cv, loaded.shards) == (
        manifest.folds,
        manifest.cv,
        manifest.shards,
    )
    assert loaded.digest == manifest.digest
    assert np.array_equal(loaded.fold_statistics(1).m2, manifest.fold_statistics(1).m2)


def test_folds_that_share_shards_have_digests_of_their_own(tmp_path: Path) -> None:
    windows = [prepared(tmp_path, table(), Cv(kind="time", by="day", window=w)) for w in (1, 2)]
    assert windows[0].shards == windows[1].shards
    assert windows[0].digest != windows[1].digest


def test_without_folds_nothing_is_said_of_them(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    manifest = made(tmp_path, data(), None)
    written = json.loads((tmp_path / "ds" / NAME).read_text())
    assert (written["cv"], written["folds"]) == (None, [])
    assert (manifest.num_folds, manifest.cv) == (0, None)
    assert {shard.path for shard in manifest.shards} == {
        f"shards/{split}/00000-00000.arrow" for split in ("train", "validation", "test")
    }


def test_the_column_is_no_feature_but_where_it_is_listed(tmp_path: Path) -> None:
    pa.csv.write_csv(table(), tmp_path / "t.csv")
    exclude, found = ["city", "shop", "day", "fold"], []
    for name in ("t.csv", "t.parquet"):
        pq.write_table(table(), tmp_path / "t.parquet")
        cv = Cv(kind="time", by="when", gap=0.5)
        left_out = made(tmp_path, data(source=name, exclude=exclude), cv)
        assert left_out.feature_names == ("a", "b")
        found.append(folds_of(tmp_path, left_out))
        listed = made(tmp_path, data(source=name, features=["a", "when"]), cv)
        assert listed.feature_names == ("a", "when")
        found.append(folds_of(tmp_path, listed))
        values = rows_of(tmp_path, listed.shards_of("train"), "features")[:, 1]
        at = rows_of(tmp_path, listed.shards_of("train"))
        less = table()["when"].to_numpy()[at] - listed.columns.offsets["when"]
        assert np.array_equal(values, less.astype(np.float32))
    for other, fold, side in itertools.product(found[1:], range(5), range(2)):
        assert np.array_equal(other[fold][side], found[0][fold][side])


def test_a_test_source_needs_no_column_of_folds(tmp_path: Path) -> None:
    pq.write_table(table(50, seed=9).select(["y", "a", "b"]), tmp_path / "test.parquet")
    for cv in KINDS:
        manifest = prepared(tmp_path, table(), Cv(**cv), test_source="test.parquet")
        assert manifest.rows("test") == 50
        assert all(shard.fold is None for shard in manifest.shards_of("test"))


@pytest.mark.parametrize("kind", ["group", "time"])
def test_a_column_that_folders_stand_for(tmp_path: Path, kind: Any) -> None:
    for year in range(2001, 2007):
        (tmp_path / f"by/year={year}").mkdir(parents=True)
        pq.write_table(table(80, seed=year), tmp_path / f"by/year={year}/t.parquet")
    split = {"validation": 0, "test": 0}
    manifest = made(tmp_path, data(source="by", split=split), Cv(kind=kind, by="year"))
    found = folds_of(tmp_path, manifest)
    for k, (trained, validated) in enumerate(found):
        years = set(trained // 80), set(validated // 80)
        assert not years[0] & years[1]
        if kind == "time":
            assert years == (set(range(k + 1)), {k + 1})


# ---- bad input -----------------------------------------------------------------------------

TEN = {
    "y": [0, 1] * 5,
    "a": list(range(10)),
    "g": ["p", "p", "q", "q", "r", "r", "p", "p", "q", "q"],
    "t": list(range(10)),
    "same": [1] * 9 + [2],
    "f": ["only"] * 10,
    "hole": [None, 1, 2, 3, None, 4, 5, 6, 7, 8],
    "name": [f"n{i}" for i in range(10)],
    "half": [0.5] * 10,
    "label": [0, 0, 1, 1, 0, 0, 0, 0, 1, 1],
}


@pytest.mark.parametrize(
    ("cv", "said"),
    [
        ({"folds": 11}, "cv.folds is 11, and there are 10 rows to train on. Set cv.folds to at mo"),
        (
            {"folds": 6},
            "no class has so many training rows: the largest, 0, has 5. Set cv.folds to",
        ),
        (
            {"kind": "group", "by": "g"},
            "cv.folds is 5, and column g has 3 different values.*most 3",
        ),
        ({"kind": "group", "by": "f"}, "column f has 1 different values.*Name a column of more"),
        ({"kind": "group", "by": "gg"}, "cv.by names column gg, which the source lacks. Did you m"),
        ({"kind": "group", "by": "y"}, "cv.by names the label y"),
        ({"kind": "group", "by": "hole"}, "column hole, which is missing in 2 training rows"),
        ({"kind": "group", "by": "half"}, "holds something else than text or whole numbers"),
        ({"kind": "time", "by": "hole"}, "missing in 2 training rows: their time is not known"),
        ({"kind": "time", "by": "name"}, "column name of type string; for kind time it has to be"),
        (
            {"kind": "time", "by": "same"},
            "training rows share a time in column same.*into 6 blocks",
        ),
        ({"kind": "time", "by": "t", "gap": 2}, "cv.gap is 2, which leaves fold 0 no row"),
        ({"kind": "time", "by": "t", "folds": 10}, "share a time in column t.*into 11 blocks"),
        ({"kind": "predefined", "by": "f"}, "column f, which holds only in every training row"),
        ({"kind": "predefined", "by": "g", "folds": 4}, r"names 3 folds \(p, q, r\). Remove cv.f"),
        ({"kind": "predefined", "by": "hole"}, "missing in 2 training rows: their fold is"),
    ],
)
def test_bad_input(tmp_path: Path, cv: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        prepared(
            tmp_path, pa.table(TEN), Cv(**cv), features=["a"], split={"validation": 0, "test": 0}
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()


def test_a_group_that_is_a_whole_class(tmp_path: Path) -> None:
    options = {"features": ["a"], "split": {"validation": 0, "test": 0}, "label": "label"}
    said = "Every training row of class 1 has q in column g"
    for kind in ("group", "predefined"):
        cv = Cv(kind=kind, by="g", folds=3)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=said):
            prepared(tmp_path, pa.table(TEN), cv, **options)
    # Two groups that make up a class, and fall into the same fold.
    rows = {"label": [0, 0, 0, 0, 0, 0, 1, 1], "a": range(8), "g": [1, 1, 1, 2, 2, 2, 3, 4]}
    rows = {name: [*values, *values] for name, values in rows.items()}
    rows["label"][:6] = [2] * 6
    rows["g"] = [1, 2, 2, 2, 1, 1, 3, 4, 1, 2, 1, 2, 2, 1, 4, 3]
    cv = Cv(kind="predefined", by="f")
    rows["f"] = ["r" if g > 2 else "pq"[g % 2] for g in rows["g"]]
    with pytest.raises(DataError, match="Every training row of class 1 has r in column f"):
        prepared(tmp_path, pa.table(rows), cv, "multiclass", **options)


def test_groups_of_one_class_in_one_fold(tmp_path: Path) -> None:
    # Largest first: 8 rows to fold 0, 4 to fold 1, then both groups of class 1 to fold 1.
    rows = {"g": [1] * 8 + [2] * 4 + [3] * 2 + [4] * 2, "a": range(16)}
    source = pa.table({**rows, "y": [0] * 6 + [2] * 2 + [0, 2, 2, 2] + [1] * 4})
    cv = Cv(kind="group", by="g", folds=2)
    with pytest.raises(DataError, match="Every training row of class 1 is in fold 1"):
        prepared(
            tmp_path, source, cv, "multiclass", features=["a"], split={"validation": 0, "test": 0}
        )
    assert not (tmp_path / "ds").exists()


def test_a_fold_of_one_class(tmp_path: Path) -> None:
    source = pa.table({"y": [0] * 30 + [1] * 70, "a": range(100), "t": range(100)})
    cv = Cv(kind="time", by="t")
    split = {"validation": 0, "test": 0}
    with pytest.raises(DataError, match="Fold 0 would be trained on rows of class 0 alone"):
        prepared(tmp_path, source, cv, features=["a"], split=split)
    three = source.set_column(0, "y", pa.array([0, 2] * 15 + [1] * 70))
    manifest = prepared(tmp_path, three, cv, "multiclass", features=["a"], split=split)
    assert "No row of class 1 in what fold 0 trains on." in manifest.warnings


def test_rare_classes_and_late_columns_are_told(tmp_path: Path) -> None:
    source = pa.table({"y": [0] * 50 + [1] * 3, "a": range(53), "t": range(53)})
    split = {"validation": 0, "test": 0}
    manifest = prepared(tmp_path, source, Cv(), features=["a"], split=split)
    assert any(
        "Class 1 has 3 training rows, fewer than the 5 folds" in w for w in manifest.warnings
    )
    late = pa.array([None] * 30 + list(range(23)), pa.float64())
    source = source.set_column(1, "a", late).set_column(0, "y", pa.array([0, 1] * 26 + [0]))
    manifest = prepared(tmp_path, source, Cv(kind="time", by="t"), features=["a"], split=split)
    assert any("every row that fold 0 is trained on: a." in w for w in manifest.warnings)


def test_too_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_keys, "MAX_GROUPS", 100)
    source = table().append_column("key", pa.array(range(ROWS)))
    for rows in (200, 1 << 18):  # over all ranges, and in one
        monkeypatch.setattr(source_module, "PIECE_ROWS", rows)
        with pytest.raises(DataError, match="column key, which has more than 100 different values"):
            prepared(tmp_path, source, Cv(kind="group", by="key"))


def test_groups_are_merged_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(tmp_path, table(), Cv(kind="group", by="shop")).digest
    monkeypatch.setattr(fold_keys, "_MERGE_ROWS", 5)
    assert prepared(tmp_path, table(), Cv(kind="group", by="shop")).digest == whole


def test_identifiers_beyond_int64_are_groups_as_text(tmp_path: Path) -> None:
    """The advice of the refusal, followed."""
    ids = np.array([2**63 + 5, 2**64 - 3, 12], dtype=np.uint64)[np.arange(90) % 3]
    frame = pa.table({"y": np.arange(90) % 2, "a": np.arange(90.0), "u": ids})
    pq.write_table(frame, tmp_path / "t.parquet")
    cv = Cv(folds=3, kind="group", by="u")

    def groups(**values: list[str]) -> int:
        spec = Data.model_validate({"source": "t.parquet", "label": "y", **values})
        place = {"data_root": tmp_path, "folder": tmp_path / "ds"}
        return prepare(
            spec, "binary", map=lambda f, items, _: map(f, items), cv=cv, **place
        ).num_folds

    with pytest.raises(DataError, match=r"cv.by names column u.* List it in data.text"):
        groups()
    assert groups(text=["u"]) == 3
