"""Names and types alone decide what a column is for, or refuse it with advice."""

from typing import Any

import pyarrow as pa
import pytest

from ddlflow.data.roles import choose
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

SCHEMA = {
    "id": pa.int64(),
    "mass": pa.float64(),
    "flag": pa.bool_(),
    "city": pa.string(),
    "cents": pa.decimal128(9, 2),
    "kind": pa.dictionary(pa.int32(), pa.string()),
    "when": pa.timestamp("s"),
    "nested": pa.list_(pa.string()),
    "y": pa.int8(),
    "part": pa.string(),
}


def _data(**values: Any) -> Data:
    return Data(**({"source": "x.csv", "label": "y", "exclude": ["when", "nested"]} | values))


def test_all_features_by_type() -> None:
    roles = choose(SCHEMA, _data(categorical=["id"], split={"column": "part"}), "binary")
    assert roles.numeric == ("mass", "flag", "cents")
    assert roles.categorical == ("id", "city", "kind")
    assert (roles.label, roles.split) == ("y", "part")
    assert roles.keys(is_test=False) == ["y", "id", "city", "kind", "part"]


def test_listed_features_keep_their_order() -> None:
    roles = choose(SCHEMA, _data(features=["cents", "mass"], exclude=[]), "regression")
    assert roles.numeric == ("cents", "mass")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label": "yy"}, r"data\.label names column yy.*Did you mean 'y'\?"),
        ({"features": ["mas"]}, r"data\.features names column mas.*Did you mean 'mass'\?"),
        ({"exclude": ["qqqq"]}, "The columns are: id, mass"),
        ({"split": {"column": "prt"}}, "Did you mean 'part'"),
        ({"features": ["mass", "y"]}, "lists the label y"),
        ({"exclude": []}, r"when is of type timestamp\[s\].*data\.exclude"),
        ({"features": ["nested"]}, "nested is of type list"),
        ({"features": ["mass"], "categorical": ["city"]}, "city, which is no feature"),
        ({"label": "when"}, "Label when is of type timestamp"),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        choose(SCHEMA, _data(**values), "binary")


def test_a_text_is_no_regression_target() -> None:
    with pytest.raises(DataError, match="objective regression it has to be a number"):
        choose(SCHEMA, _data(label="city"), "regression")


def test_no_feature_left() -> None:
    with pytest.raises(DataError, match="No feature is left"):
        choose({"y": pa.int8()}, _data(exclude=[]), "binary")
