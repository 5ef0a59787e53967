"""Out-of-fold predictions: the held-out rows of a fold, as its own model has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ddlflow.data.shards.rows import Rows
from ddlflow.data.shards.shard import map_shard
from ddlflow.sweep.held_out import PASS_ROWS, write_predictions
from ddlflow.sweep.member import first_net


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_each_held_out_row_has_what_the_model_says_to_it(
    ground: Callable[..., Any], tmp_path: Path, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing numbers and categories too; in several passes as in one."""
    here = ground(labels, "all")
    member = here.member("m", fold=1, model={"use": "mlp", "hidden": [5], "dropout": 0.5})
    (result,) = here.apart([member]).values()
    path = tmp_path / write_predictions(member, result.tensors, here.prepared, tmp_path)
    assert path == tmp_path / "predictions-1.parquet"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]  # nothing half written
    table = pq.read_table(path)
    fold = here.prepared.folds[1]
    shards = [map_shard(one) for one in fold.validation.locate(fold.validation.shards)]
    assert table["row"].to_pylist() == [int(r) for shard in shards for r in shard["row"]]
    assert set(table["fold"].to_pylist()) == {1}
    label = np.concatenate([shard["label"] for shard in shards])

    net = first_net(member.model, member.train, here.prepared).eval()
    net.load_state_dict(result.tensors)
    rows = Rows(fold.validation, fold.standardisation)
    arrays = rows.empty(rows.rows)
    rows.read(0, rows.rows, arrays, 0)
    with torch.inference_mode():
        given = net(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["categories"]))
    classes = here.prepared.manifest.label.classes
    near = {"rtol": 1e-5, "atol": 1e-6}
    if labels == "regression":
        assert table.column_names == ["row", "fold", "label", "prediction"]
        parts = [map_shard(one) for one in fold.train.locate(fold.train.shards)]
        learned = np.concatenate([part["label"] for part in parts]).astype(float)
        expected = learned.mean() + learned.std() * given.double().numpy()
        np.testing.assert_allclose(table["prediction"], expected, **near)
        np.testing.assert_array_equal(table["label"], label)
    else:
        assert table["label"].to_pylist() == [classes[int(k)] for k in label]
        if labels == "binary":
            np.testing.assert_allclose(table["probability"], given.sigmoid(), **near)
            likeliest = (given >= 0).int()
        else:
            found = np.stack([table[f"probability_{name}"] for name in classes], axis=1)
            np.testing.assert_allclose(found, given.softmax(1), **near)
            likeliest = given.argmax(1)
        assert table["prediction"].to_pylist() == [classes[int(k)] for k in likeliest]

    assert table.num_rows < PASS_ROWS
    monkeypatch.setattr("ddlflow.sweep.held_out.PASS_ROWS", 50)
    name = write_predictions(member, result.tensors, here.prepared, tmp_path)
    again = pq.read_table(tmp_path / name)
    for name in table.column_names:
        if name.startswith("pro") or labels == "regression":
            values = (np.array(one[name].to_pylist()) for one in (again, table))
            np.testing.assert_allclose(*values, **near)
        else:
            assert again[name].to_pylist() == table[name].to_pylist()
