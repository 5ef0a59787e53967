"""Encoding a batch, as training does and as inference does."""

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ddlflow.data.columns import Category, Columns, Label
from ddlflow.errors import DataError

COLUMNS = Columns(
    numeric=("a", "b"),
    categories=(
        Category("city", "text", ("Bonn", "Turin")),
        Category("code", "integer", (3, 20)),
    ),
    label=Label("y", "multiclass", ("cat", "dog")),
)


def _batch(**changes: Any) -> pa.RecordBatch:
    values = {
        "extra": ["x", "y", "z"],
        "code": [20, 4, None],
        "b": [True, False, None],
        "a": [1.5, None, float("inf")],
        "city": ["Turin", "Rome", None],
    }
    return pa.RecordBatch.from_pydict(values | changes)


def test_encode_ignores_order_and_other_columns() -> None:
    found = COLUMNS.encode(_batch())
    assert np.array_equal(found.features, [[1.5, 1], [np.nan, 0], [np.nan, np.nan]], equal_nan=True)
    assert found.features.dtype == np.float32
    assert found.features.flags.c_contiguous
    assert found.categories is not None
    assert found.categories.tolist() == [[2, 2], [0, 0], [0, 0]]
    assert found.categories.dtype == np.int32
    assert found.label is None
    assert found.missing == {"a": 1, "b": 1, "city": 1, "code": 1}
    assert found.infinite == {"a": 1, "b": 0}
    assert found.unseen == {"city": 1, "code": 1}


def test_encode_of_a_pandas_frame() -> None:
    frame = _batch().to_pandas()  # code became float64 with NaN, b object
    frame["city"] = frame["city"].astype("category")
    found = COLUMNS.encode(pa.RecordBatch.from_pandas(frame))
    assert found.categories is not None
    assert found.categories.tolist() == [[2, 2], [0, 0], [0, 0]]


def test_labels() -> None:
    found = COLUMNS.encode(_batch(y=["dog", "cat", "dog"]), with_label=True)
    assert found.label is not None
    assert (found.label.dtype, found.label.tolist()) == (np.dtype(np.int64), [1, 0, 1])
    with pytest.raises(DataError, match=r"y holds 'cow'; the classes are cat, dog"):
        COLUMNS.encode(_batch(y=["dog", "cow", "dog"]), with_label=True)
    with pytest.raises(DataError, match="the classes are cat, dog"):
        COLUMNS.encode(_batch(y=[1, 2, 3]), with_label=True)


@pytest.mark.parametrize(
    "values", [pa.array([0, 1, 1]), pa.array([0.0, 1.0, 1.0]), pa.array([False, True, True])]
)
def test_the_same_classes_in_another_type(values: pa.Array) -> None:
    columns = Columns((), (), Label("y", "binary", (0, 1)))
    found = columns.encode(pa.RecordBatch.from_arrays([values], ["y"]), with_label=True)
    assert found.label is not None
    assert (found.label.dtype, found.label.tolist()) == (np.dtype(np.float32), [0, 1, 1])
    assert found.features.shape == (3, 0)
    assert found.categories is None


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (pa.array([1, None], pa.int64()), [1, np.nan]),
        (pa.array([Decimal("1.25"), None]), [1.25, np.nan]),
        (pa.array([1e39, -1e39], pa.float64()), [np.nan, np.nan]),
        (pa.array([1, 2], pa.uint8()).dictionary_encode(), [1, 2]),
        (pa.nulls(2), [np.nan, np.nan]),
        (pa.array(np.array([1, 2], dtype=np.float16)), [1, 2]),
    ],
)
def test_numbers_of_any_type(array: pa.Array, wanted: list[float]) -> None:
    columns = Columns(("a",), (), Label("y", "regression"))
    found = columns.encode(pa.RecordBatch.from_arrays([array], ["a"]))
    assert np.array_equal(found.features[:, 0], wanted, equal_nan=True)


def test_a_missing_column_is_named() -> None:
    frame = pd.DataFrame({"a": [1.0], "B": [2.0], "city": ["Bonn"], "code": [3]})
    with pytest.raises(DataError, match="lacks column b, which the model needs"):
        COLUMNS.encode(pa.RecordBatch.from_pandas(frame))


def test_text_where_numbers_are_expected() -> None:
    with pytest.raises(DataError, match=r"Column a holds 'high' \(type string\)"):
        COLUMNS.encode(_batch(a=["high", "low", None]))
    with pytest.raises(DataError, match="Category code holds something else than whole numbers"):
        COLUMNS.encode(_batch(code=[1.5, 2, 3]))


def test_json_round_trip() -> None:
    assert Columns.from_json(json.loads(json.dumps(COLUMNS.to_json()))) == COLUMNS
