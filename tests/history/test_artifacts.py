"""What history reads of a run's artifacts, those of earlier versions too; the rest is named."""

from typing import Any

import pytest

from ddlflow.errors import SpecError
from ddlflow.history.artifacts import dataset_of, training_of
from ddlflow.train.events import DigestMarked

TRAINED: dict[str, Any] = {
    "epochs": 2,
    "steps": 6,
    "rows": 10,
    "rows_mark": 2**63 + 5,
    "trail": [{"step": 3, "digest": "ab", "loss": 0.5}],
    "worlds": [1, 2],
    "more": "of a later version",
}
COLUMNS = {
    "numeric": ["a"],
    "categories": [{"name": "town", "values": ["Bonn"]}],
    "label": {"name": "y", "kind": "binary", "classes": ["no", "yes"]},
}
SHARD = {"path": "train/0", "split": "train", "fold": None, "rows": 9, "sha256": "cd"}


def test_a_training() -> None:
    found = training_of(TRAINED, "train.json")
    assert (found.epochs, found.steps, found.rows, found.rows_mark) == (2, 6, 10, 2**63 + 5)
    assert found.trail == (DigestMarked(3, "ab", 0.5),)
    assert found.worlds == (1, 2)
    earlier = {name: value for name, value in TRAINED.items() if name != "worlds"}
    assert training_of(earlier, "train.json").worlds == ()


def test_a_dataset_of_an_earlier_version() -> None:
    found = dataset_of({"columns": COLUMNS, "shards": [SHARD]}, "manifest.json")
    assert (found.label, found.vocabularies) == ("y (binary)", {"town": ["Bonn"]})
    assert (found.tensors, found.num_folds, found.range_rows) == ([], 0, ())
    assert [shard.rows for shard in found.shards] == [9]


@pytest.mark.parametrize("values", [[], {}, {**TRAINED, "trail": 5}, {**TRAINED, "steps": "x"}])
def test_a_damaged_training_is_one_line(values: Any) -> None:
    with pytest.raises(SpecError, match=r"^train.json of run 1 is damaged: .* Take another run.$"):
        training_of(values, "train.json of run 1")


def test_a_damaged_dataset_is_one_line() -> None:
    with pytest.raises(SpecError, match=r"^manifest.json is damaged: it lacks 'shards'. Take "):
        dataset_of({"columns": COLUMNS}, "manifest.json")
