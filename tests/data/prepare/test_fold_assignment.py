"""Folds' sizes and classes to within one, whatever the pieces; groups dealt as GroupKFold does."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from ddlflow.data.prepare.fold_assignment import FoldAssignment, balanced, names_of, parts_of
from ddlflow.errors import DataError
from ddlflow.store.folder import FolderStore
from ddlflow.store.stored import StoredFile

counts_of_classes = st.lists(st.integers(0, 60), min_size=1, max_size=80).filter(any)


def dealt(kind: str, counts: list[int], folds: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Classes in a mixed order, and each row's part; the rows are dealt in two pieces."""
    dealing = FoldAssignment(kind, folds, seed=seed, counts=np.array(counts))  # type: ignore[arg-type]
    random = np.random.default_rng(1)
    rows = random.permutation(sum(counts))
    classes = np.repeat(np.arange(len(counts)), counts)[rows]
    numbers = np.concatenate([np.arange(n) for n in counts])[rows]
    cut = len(rows) // 3
    pieces = [slice(0, cut), slice(cut, None)]
    parts = [parts_of(dealing, classes[p], numbers[p], None, "") for p in pieces]
    found = np.concatenate(parts)
    assert np.array_equal(found, parts_of(dealing, classes, numbers, None, ""))
    return classes, found


@given(counts_of_classes, st.integers(2, 12))
def test_stratified_folds_differ_by_at_most_one_in_size_and_in_each_class(
    counts: list[int], folds: int
) -> None:
    classes, parts = dealt("stratified", counts, folds)
    assert np.ptp(np.bincount(parts, minlength=folds)) <= 1
    for class_ in range(len(counts)):
        assert np.ptp(np.bincount(parts[classes == class_], minlength=folds)) <= 1


@given(counts_of_classes, st.integers(2, 12))
def test_plain_folds_differ_by_at_most_one_in_size(counts: list[int], folds: int) -> None:
    _, parts = dealt("plain", counts, folds)
    assert np.ptp(np.bincount(parts, minlength=folds)) <= 1


def test_plain_folds_take_no_heed_of_the_label() -> None:
    # 400 rows of a class over 4 folds: 100 each by chance, deviation sqrt(400 * 1/4 * 3/4) = 8.7
    # at most. Over 20 seeds they are never as even as stratified folds are, nor far off.
    spread = []
    for seed in range(20):
        classes, parts = dealt("plain", [400, 400], 4, seed)
        spread.append(np.bincount(parts[classes == 0], minlength=4))
    assert np.abs(np.array(spread) - 100).max() < 45
    assert np.ptp(spread, axis=1).min() > 1


@pytest.mark.parametrize("kind", ["plain", "stratified"])
def test_another_seed_deals_otherwise(kind: str) -> None:
    first, second = dealt(kind, [500, 500], 5, 1)[1], dealt(kind, [500, 500], 5, 2)[1]
    assert 0.1 < np.mean(first == second) < 0.3  # a fifth by chance


@given(st.lists(st.integers(1, 30), min_size=12, max_size=60), st.integers(2, 12))
def test_groups_are_balanced_as_by_scikit_learn(sizes: list[int], folds: int) -> None:
    found = balanced(sizes, folds)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    theirs = [len(t) for _, t in GroupKFold(folds).split(rows, groups=rows)]
    ours = Counter[int]()
    for group, fold in enumerate(found):
        ours[fold] += sizes[group]
    assert sorted(ours.values()) == sorted(theirs)


def test_ties_go_to_the_first_group_and_the_first_fold() -> None:
    assert balanced([2, 3, 2, 3, 1], 2) == [0, 0, 1, 1, 0]


def test_names_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "folds.arrow"
    batch = pa.record_batch({"value": ["a", "b"], "part": pa.array([1, 0], pa.int32())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)
    table = StoredFile(FolderStore(tmp_path), path.name)
    dealing = FoldAssignment("named", 2, type=pa.string(), table=table)
    column = pa.array(["b", "a", "a"]).dictionary_encode()
    zeros = np.zeros(3, dtype=np.int64)
    assert parts_of(dealing, zeros, zeros, column, "g").tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("values", "type_", "wanted"),
    [
        (pa.array([1.0, float("nan"), 3.0]), pa.float64(), [1, None, 3]),
        (pa.array([7, 8], pa.int8()), pa.int64(), [7, 8]),
        (pa.array([2**62 + 1]), pa.int64(), [2**62 + 1]),
        (pa.array(["x", None]), pa.string(), ["x", None]),
        (pa.array(["x"], pa.large_string()), pa.large_string(), ["x"]),
        (pa.array([True, False]), pa.bool_(), [1, 0]),
        (pa.array([18_000], pa.date32()), pa.date32(), ["2019-04-14"]),
    ],
)
def test_names_are_text_or_whole_numbers(
    values: pa.Array, type_: pa.DataType, wanted: list[object]
) -> None:
    assert names_of(values, "g", type_).to_pylist() == wanted


def test_a_name_is_no_decimal() -> None:
    with pytest.raises(DataError, match=r"cv\.by names column g, which holds something else"):
        names_of(pa.array([1.5]), "g", pa.float64())
