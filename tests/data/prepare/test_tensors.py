"""Tensors and sequences in a data set: the source's numbers, exact statistics, stated answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import NAME, Manifest
from ddlflow.data.shards.shard import map_shard, sha256
from ddlflow.data.sources import source as source_module
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Cv, Data

ROWS = 1_003
RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.integers(0, 256, (ROWS, 5, 3), dtype=np.uint8)
VECTORS = RANDOM.standard_normal((ROWS, 4)) * [1, 10, 1e-3, 1e4] + [0, 5, 0, 1e5]
STEPS = [RANDOM.standard_normal((n, 2)) for n in RANDOM.integers(0, 9, ROWS)]
COUNTS = [RANDOM.integers(-9, 9, n) for n in RANDOM.integers(0, 30, ROWS)]
LABEL = RANDOM.integers(0, 3, ROWS)
TYPES = {
    "image": pa.fixed_shape_tensor(pa.uint8(), [5, 3]),
    "vector": pa.list_(pa.float64(), 4),
    "steps": pa.list_(pa.list_(pa.float32(), 2)),
    "counts": pa.list_(pa.int16()),
}


def column(name: str, rows: list[Any]) -> pa.Array:
    """Rows (arrays, lists or None) as a column of the table."""
    plain = [None if row is None else np.asarray(row).tolist() for row in rows]
    if name != "image":
        return pa.array(plain, TYPES[name])
    flat = [None if row is None else np.ravel(np.asarray(row)).tolist() for row in plain]
    return pa.ExtensionArray.from_storage(TYPES[name], pa.array(flat, TYPES[name].storage_type))


def table(**columns: list[Any]) -> pa.Table:
    given = {"image": [*IMAGES], "vector": [*VECTORS], "steps": STEPS, "counts": COUNTS} | columns
    found = {name: column(name, rows) for name, rows in given.items()}
    return pa.table({"a": RANDOM.standard_normal(ROWS), **found, "y": LABEL})


def backwards(function: Any, items: list[Any], _: str) -> Iterator[Any]:
    return reversed([function(item) for item in reversed(items)])


def made(
    root: Path, given: pa.Table, *, cv: Cv | None = None, arrow: bool = False, **values: Any
) -> Manifest:
    source = "t.arrow" if arrow else "t.parquet"
    if arrow:
        with pa.ipc.new_file(root / source, given.schema) as file:
            file.write_table(given, max_chunksize=300)
    else:
        pq.write_table(given, root / source, row_group_size=300)
    return prepare(
        Data(source=source, label="y", **values),
        "multiclass",
        data_root=root,
        folder=root / "ds",
        map=backwards,
        cv=cv,
    )


def samples(root: Path, manifest: Manifest, field: str) -> dict[int, np.ndarray]:
    """Each row's own numbers as the shards have them, by its number in the source."""
    found: dict[int, np.ndarray] = {}
    for shard in manifest.shards:
        mapped = map_shard(root / "ds" / shard.path)
        values = {one.field: one for one in shard.values}
        column = mapped[field]
        if field in values:
            steps = map_shard(root / "ds" / values[field].path)["values"]
            assert len(steps) == values[field].rows == int(column[:, 1].sum())
            assert sha256(root / "ds" / values[field].path) == values[field].sha256
            column = [steps[first : first + count] for first, count in column]  # type: ignore
        found |= dict(zip(mapped["row"].tolist(), column, strict=True))
    return found


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 256)
    monkeypatch.setattr(source_module, "PIECE_BYTES", 5_000)


@pytest.mark.usefixtures("few_rows")
def test_every_row_keeps_its_numbers(tmp_path: Path) -> None:
    manifest = made(tmp_path, table())
    assert [field.name for field in manifest.tensors] == ["image", "vector", "steps", "counts"]
    assert manifest.feature_names == ("a",)
    assert len(manifest.shards) > 12
    given: dict[str, Any] = {"image": IMAGES, "vector": VECTORS, "counts": COUNTS}
    given["steps"] = [one.astype(np.float32) for one in STEPS]
    for name, rows in given.items():
        found = samples(tmp_path, manifest, name)
        assert sorted(found) == list(range(ROWS))
        for row in range(ROWS):
            assert np.array_equal(found[row], rows[row])
        dtype = next(iter(found.values())).dtype
        assert dtype == {"image": "uint8", "vector": "f8", "steps": "f4", "counts": "i2"}[name]


@pytest.mark.usefixtures("few_rows")
def test_statistics_are_those_of_the_rows_trained_on(tmp_path: Path) -> None:
    manifest = made(tmp_path, table(), cv=Cv(folds=3))
    train = [
        map_shard(tmp_path / "ds" / shard.path)["row"] for shard in manifest.shards_of("train")
    ]
    folds = [
        [map_shard(tmp_path / "ds" / s.path)["row"] for s in manifest.shards_of_fold(k)[0]]
        for k in range(3)
    ]
    for fold, parts in enumerate([train, *folds], start=-1):
        rows = np.concatenate(parts)
        found = manifest.tensor_statistics(fold=None if fold < 0 else fold)
        pixels = IMAGES[rows].astype(object)  # exact integers, added by Python
        total, squares = int(pixels.sum()), int((pixels**2).sum())
        assert found["image"].sums == (total,)
        assert found["image"].squares == (squares,)
        assert found["image"].mean[0] == total / pixels.size
        variance = IMAGES[rows].astype(np.float64).var()
        assert found["image"].variance[0] == pytest.approx(variance, rel=1e-12)
        of_vector = VECTORS[rows].astype(np.float32).astype(np.float64)
        assert found["vector"].mean == pytest.approx(of_vector.mean(0), rel=1e-12)
        assert found["vector"].variance == pytest.approx(of_vector.var(0), rel=1e-9)
        steps = np.concatenate([STEPS[row] for row in rows]).astype(np.float32).astype(np.float64)
        assert found["steps"].mean == pytest.approx(steps.mean(0), abs=1e-12)
        assert found["steps"].variance == pytest.approx(steps.var(0), rel=1e-12)
        lengths = [len(STEPS[row]) for row in rows]
        assert (found["steps"].empty, found["steps"].longest) == (lengths.count(0), max(lengths))
        counts = np.concatenate([COUNTS[row] for row in rows])
        assert found["counts"].sums == (int(counts.sum()),)
        assert found["counts"].variance[0] == pytest.approx(counts.var(), rel=1e-12)
    assert any("steps has no step in" in warning for warning in manifest.warnings)
    assert manifest.constant == ()


def test_what_is_constant(tmp_path: Path) -> None:
    alike = table(
        image=[np.full((5, 3), 7)] * ROWS, steps=[[[1.0, 2.0]] * (k % 3) for k in range(ROWS)]
    )
    assert made(tmp_path, alike).constant == ("image",)  # a sequence has its length


def test_a_sequence_without_any_step_is_empty_not_missing(tmp_path: Path) -> None:
    said = r"^Empty in every training row: steps, counts\. List it in data\.exclude\."
    with pytest.raises(DataError, match=said):
        made(tmp_path, table(steps=[[]] * ROWS, counts=[[]] * ROWS))


def test_lists_of_one_length_become_tensors(tmp_path: Path) -> None:
    """As the README and the built-in models say it."""
    given = pa.table(
        {
            "v": [[k, 1.0, 2.0] for k in range(60)],
            "rows": [[[k, 1.0], [2.0, 3.0], [4.0, k]] for k in range(60)],
            "steps": pa.array([[[k, 1.0]] * 3 for k in range(60)], TYPES["steps"]),
            "y": [0, 1, 2] * 20,
        }
    )
    derive = {"w": "v::DOUBLE[3]", "picture": "rows::FLOAT[2][3]", "s": "steps::FLOAT[2][3]"}
    manifest = made(tmp_path, given, derive=derive, exclude=["v", "rows", "steps"])
    assert [(field.name, field.shape, field.encoding) for field in manifest.tensors] == [
        ("w", (3,), "tensor"),
        ("picture", (3, 2), "tensor"),
        ("s", (3, 2), "tensor"),
    ]
    pictures = samples(tmp_path, manifest, "picture")
    assert all(pictures[k].tolist() == [[k, 1], [2, 3], [4, k]] for k in range(60))


@pytest.mark.parametrize("name", ["image", "vector", "steps", "counts"])
def test_a_null_is_refused_or_dropped(tmp_path: Path, name: str) -> None:
    rows: dict[str, Any] = {"image": IMAGES, "vector": VECTORS, "steps": STEPS, "counts": COUNTS}
    given = [None if row % 10 == 3 else rows[name][row] for row in range(ROWS)]
    gone = len(range(3, ROWS, 10))
    with pytest.raises(DataError, match=rf"null in some rows: {name} \({gone}\).*data\.missing: d"):
        made(tmp_path, table(**{name: given}), arrow=True)
    assert not (tmp_path / "ds").exists()
    manifest = made(tmp_path, table(**{name: given}), arrow=True, missing="drop")
    assert manifest.dropped["missing"] == gone
    kept = samples(tmp_path, manifest, name)
    assert sorted(kept) == [row for row in range(ROWS) if row % 10 != 3]
    assert all(np.array_equal(kept[r], np.asarray(rows[name][r], kept[r].dtype)) for r in kept)


def test_what_arrow_does_not_read_of_parquet_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a tensor of fixed shape is null in some row") as told:
        made(tmp_path, table(image=[None, *IMAGES[1:]]), missing="drop")
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "ds").exists()


def test_numbers_that_are_missing_or_infinite(tmp_path: Path) -> None:
    vectors, steps = VECTORS.copy(), [one.copy() for one in STEPS]
    vectors[5, 1], vectors[6, 2], vectors[7] = np.nan, np.inf, [1e300, 1, 1, 1]
    full = [k for k, one in enumerate(steps) if len(one)]
    steps[full[0]][0, 0] = np.nan
    steps[full[1]][0, 1] = -np.inf
    manifest = made(tmp_path, table(vector=[*vectors], steps=steps), split={"test": 0})
    assert (manifest.replaced["vector"], manifest.replaced["steps"]) == (3, 2)
    held = samples(tmp_path, manifest, "vector")
    assert np.isnan(held[5][1])
    assert np.isnan(held[6][2])
    assert np.isnan(held[7][0])
    for settings, words in (
        ({"missing": "refuse"}, r"missing values: vector \(1\), steps \(1\)"),
        ({"infinite": "refuse"}, r"infinite values: vector \(2\), steps \(1\)"),
    ):
        with pytest.raises(DataError, match=words):
            made(tmp_path, table(vector=[*vectors], steps=steps), **settings)
    dropped = made(tmp_path, table(vector=[*vectors], steps=steps), missing="drop", infinite="drop")
    assert (dropped.dropped["missing"], dropped.dropped["infinite"]) == (2, 3)


def test_sequences_in_lines_of_json(tmp_path: Path) -> None:
    lines = [
        json.dumps({"s": [float(x) for x in COUNTS[row]], "v": VECTORS[row].tolist()})[:-1]
        + f', "y": {LABEL[row]}}}'
        for row in range(ROWS)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    manifest = prepare(
        Data(source="t.jsonl", label="y", derive={"first": "y + 1"}, exclude=["first"]),
        "multiclass",
        data_root=tmp_path,
        folder=tmp_path / "ds",
        map=backwards,
    )
    assert [field.shown for field in manifest.tensors] == [
        "s (float64 [steps])",
        "v (float64 [steps])",
    ]
    found = samples(tmp_path, manifest, "s")
    assert all(np.array_equal(found[row], COUNTS[row]) for row in range(ROWS))


def test_a_manifest_is_read_back_and_tells_the_fields(tmp_path: Path) -> None:
    manifest = made(tmp_path, table())
    again = Manifest.load(tmp_path / "ds")
    assert again.digest == manifest.digest
    assert again.shards == manifest.shards
    assert again.tensor_statistics()["image"].sums == manifest.tensor_statistics()["image"].sums
    told = json.loads((tmp_path / "ds" / NAME).read_text())
    fields = {field["name"]: field for field in told["fields"]}
    assert [*fields] == ["features", "image", "vector", "steps", "counts", "label", "row"]
    assert fields["image"]["shape"] == [5, 3]
    assert fields["image"]["dtype"] == "uint8"
    assert fields["steps"]["encoding"] == "sequence"


def test_values_are_in_the_digest_and_a_table_is_described_as_ever(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    changed = [step.copy() for step in STEPS]
    row = next(k for k, step in enumerate(changed) if len(step) > 1)
    changed[row] = changed[row][::-1]  # the same numbers and counts, in another order
    first, second = (
        made(folder, table(steps=steps), features=["steps"], split={"validation": 0, "test": 0})
        for folder, steps in ((one, STEPS), (other, changed))
    )
    assert [s.sha256 for s in first.shards] == [s.sha256 for s in second.shards]
    assert first.digest != second.digest
    plain = made(one, table(), features=["a"])
    told = json.loads((one / "ds" / NAME).read_text())
    assert plain.tensors == ()
    assert "tensors" not in told["columns"]
    assert not any("values" in shard for shard in told["shards"])
    assert not list((one / "ds").rglob("*values*"))  # those of the data set before are gone
