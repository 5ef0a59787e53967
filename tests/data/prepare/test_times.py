"""Times keep their order as integers, and are cut as if all of them were sorted in memory."""

import math
from datetime import date, datetime
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddlflow.data.prepare.times import Times, before, counts, firsts, ordinals, unusable
from ddlflow.errors import DataError
from ddlflow.store.folder import FolderStore
from ddlflow.store.stored import StoredFile


def times_in(folder: Path, ranges: list[list[list[int]]]) -> list[Times]:
    found = []
    for number, runs in enumerate(ranges):
        filled = [np.sort(np.array(run, dtype=np.int64)) for run in runs if run]
        file = StoredFile(FolderStore(folder), f"{number}")
        file.store.write(file.key, b"".join(run.tobytes() for run in filled))
        found.append(Times(file, tuple(map(len, filled))))
    return found


def nearest_cuts(values: list[int], blocks: int) -> list[int]:
    """The same cuts from a sorted list: the first times of the later blocks."""
    ordered = sorted(values)
    edges = [i for i in range(1, len(ordered)) if ordered[i] != ordered[i - 1]]
    cuts = []
    for block in range(1, blocks):
        place = Fraction(len(ordered) * block, blocks)
        cuts.append(ordered[min(edges, key=lambda e, p=place: (abs(e - p), e))])  # type: ignore[misc]
    return cuts


wide = st.one_of(st.integers(-20, 20), st.integers(-(2**63), 2**63 - 1))


@example([[[1, 1, 1], [1, 1, 2]]], 3)  # most rows share the least time, or the largest
@example([[[2, 2, 2], [1, 2, 2]]], 3)
@given(
    st.lists(st.lists(st.lists(wide, max_size=8), max_size=4), min_size=1, max_size=4),
    st.integers(2, 7),
)
def test_cuts_of_runs_equal_those_of_all_times_in_memory(
    ranges: list[list[list[int]]], blocks: int
) -> None:
    values = [value for runs in ranges for run in runs for value in run]
    if len(set(values)) < 2:
        return
    with TemporaryDirectory() as folder:
        times = times_in(Path(folder), ranges)
        assert firsts(times, min(values), max(values), blocks) == nearest_cuts(values, blocks)
        less, at_most = counts(times, values[:5])
        assert less.tolist() == [sum(v < w for v in values) for w in values[:5]]
        assert at_most.tolist() == [sum(v <= w for v in values) for w in values[:5]]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_decimals_keep_their_order(values: list[float]) -> None:
    found = ordinals(pa.array(values), "t", pa.float64()).tolist()
    for a, x in zip(values, found, strict=True):
        assert before(x, 0, pa.float64()) == x
        for b, y in zip(values, found, strict=True):
            assert (a < b, a == b) == (x < y, x == y)


@pytest.mark.parametrize(
    ("values", "type_", "wanted"),
    [
        ([3, 1], pa.int32(), [3, 1]),
        ([date(1970, 1, 3)], pa.date32(), [2]),
        ([date(1970, 1, 2)], pa.date64(), [86_400_000]),
        ([datetime(1970, 1, 1, 0, 1)], pa.timestamp("ms"), [60_000]),
        ([datetime(1970, 1, 1, 0, 1)], pa.timestamp("ns", "UTC"), [60 * 10**9]),
    ],
)
def test_other_times_are_counted_in_their_unit(
    values: list[Any], type_: pa.DataType, wanted: list[int]
) -> None:
    assert ordinals(pa.array(values, type_), "t", type_).tolist() == wanted


def test_a_file_of_a_narrower_type_reads_as_the_source() -> None:
    wide_ = ordinals(pa.array([2, 1], pa.int8()), "t", pa.float64())
    assert np.array_equal(wide_, ordinals(pa.array([2.0, 1.0]), "t", pa.float64()))
    with pytest.raises(DataError, match=r"cv\.by names column t of type int64"):
        ordinals(pa.array([1.5]), "t", pa.int64())
    with pytest.raises(DataError, match=r"cv\.by names column t of type uint64"):
        ordinals(pa.array([2**63], pa.uint64()), "t", pa.uint64())


@pytest.mark.parametrize(
    ("type_", "gap", "wanted"),
    [
        (pa.int64(), 3, 97),
        (pa.int64(), 2.9, 98),
        (pa.date32(), 2, 98),
        (pa.timestamp("ms"), 0.05, 50),
        (pa.timestamp("s"), 1.5, 99),
        (pa.int64(), 1e300, -(2**63)),
    ],
)
def test_a_gap_is_in_days_seconds_or_the_columns_unit(
    type_: pa.DataType, gap: float, wanted: int
) -> None:
    assert before(100, gap, type_) == wanted


def test_a_gap_of_decimals() -> None:
    first, near, far = ordinals(pa.array([1.0, -0.5, -0.75]), "t", pa.float64()).tolist()
    assert far < before(first, 1.5, pa.float64()) == near


def test_times_of_a_dictionary() -> None:
    encoded = pa.array([2.5, -1.0, 2.5]).dictionary_encode()
    plain = ordinals(pa.array([2.5, -1.0, 2.5]), "t", pa.float64())
    assert np.array_equal(ordinals(encoded, "t", encoded.type), plain)
    assert before(int(plain[0]), 3.5, encoded.type) == plain[1]
    assert unusable(pa.array([math.inf, 1.0]).dictionary_encode()).tolist() == [True, False]


def test_unusable_times() -> None:
    mask = unusable(pa.array([1.0, None, math.nan, math.inf, -math.inf]))
    assert mask.tolist() == [False, True, True, True, True]
    assert unusable(pa.array([None, date(2020, 1, 1)])).tolist() == [True, False]
