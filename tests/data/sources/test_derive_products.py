"""Powers and products of features, beside scikit-learn's, from a source to shards and a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.preprocessing import PolynomialFeatures

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.sources import derive_products
from ddlflow.data.sources.derive_products import products
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

ROWS = 3_000


def table() -> pd.DataFrame:
    random = np.random.default_rng(1)
    frame = pd.DataFrame(random.normal(5, 2, (ROWS, 3)), columns=["a", "b b", "c"])
    frame["flag"] = random.random(ROWS) < 0.5
    frame["town"] = random.choice(["x", "y"], ROWS)
    frame["y"] = frame.a * frame.c + random.normal(size=ROWS)
    return frame


def prepared(tmp_path: Path, frame: pd.DataFrame, **spec: Any) -> tuple[Manifest, np.ndarray]:
    name = spec.pop("name", "t.parquet")
    {"parquet": frame.to_parquet, "csv": frame.to_csv}[name.rsplit(".", 1)[1]](
        tmp_path / name, index=False
    )
    split = {"validation": 0, "test": 0}
    data = Data(**{"source": name, "label": "y", "split": split, **spec})
    folder = tmp_path / "out"
    manifest = prepare(
        data, "regression", data_root=tmp_path, folder=folder, map=lambda f, items, _: map(f, items)
    )
    shards = [map_shard(folder / shard.path) for shard in manifest.shards_of("train")]
    order = np.argsort(np.concatenate([shard["row"] for shard in shards]))
    return manifest, np.concatenate([shard["features"] for shard in shards])[order]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
@pytest.mark.parametrize("degree", [2, 3])
def test_as_scikit_learn(tmp_path: Path, name: str, degree: int) -> None:
    frame = table()[["a", "b b", "c", "y"]]
    manifest, features = prepared(
        tmp_path, frame, name=name, polynomial=degree, interactions=degree == 2
    )
    theirs = PolynomialFeatures(degree, include_bias=False).fit(frame[["a", "b b", "c"]])
    names = theirs.get_feature_names_out().tolist()
    ours = [name.replace("*", " ") for name in manifest.feature_names]
    assert len(ours) == 9
    assert set(ours) <= set(names)
    assert degree == 3 or set(ours) == set(names)
    expected = theirs.transform(frame[["a", "b b", "c"]])[:, [names.index(name) for name in ours]]
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_which_are_multiplied(tmp_path: Path) -> None:
    made = {"polynomial": 2, "interactions": True, "derive": {"half": "a / 2"}}
    manifest, _ = prepared(tmp_path, table(), features=["a", "flag", "town", "half"], **made)
    assert manifest.feature_names == ("a", "flag", "half", "a^2", "half^2", "a*flag", "a*half",
                                      "flag*half")  # fmt: skip
    assert [category.name for category in manifest.categories] == ["town"]
    left, _ = prepared(tmp_path, table(), exclude=["c", "a^2"], **made)
    assert "c*flag" not in left.feature_names
    assert "a^2" not in left.feature_names
    assert "b b*flag" in left.feature_names


def test_what_tells_the_label_is_no_factor(tmp_path: Path) -> None:
    spec = {"label": "late", "derive": {"late": "a * 2"}, "interactions": True}
    manifest, _ = prepared(tmp_path, table()[["a", "b b", "c"]], **spec)
    assert manifest.feature_names == ("b b", "c", "b b*c")
    (note,) = [text for text in manifest.warnings if "label late" in text]
    assert ": a. List" in note


def test_a_missing_factor_is_a_missing_product(tmp_path: Path) -> None:
    frame = table()[["a", "c", "y"]]
    frame.loc[::10, "c"] = np.nan
    manifest, features = prepared(tmp_path, frame, interactions=True)
    assert manifest.replaced == {"c": 300, "a*c": 300}
    assert np.isnan(features[::10, 2]).all()


def test_too_many_and_names_that_are_taken() -> None:
    spec = Data(source="t", label="y", polynomial=3, interactions=True)
    many = {f"x{k}": pa.float32() for k in range(62)} | {"y": pa.float64()}
    assert len(products(many, spec.model_copy(update={"polynomial": 2}))) == 62 + 62 * 61 / 2
    with pytest.raises(
        DataError, match=r"of 62 numeric features make 2,015 columns, more than 2,0"
    ):
        products(many, spec)
    assert derive_products.MOST == 2_000
    with pytest.raises(DataError, match=r"has a column x0\^2 already"):
        products({"x0": pa.int8(), "x0^2": pa.int8(), "y": pa.int8()}, spec)
    with pytest.raises(DataError, match="does not tell the columns x and X apart"):
        products({"x": pa.int8(), "X": pa.int8(), "y": pa.int8()}, spec)
