"""The cv section: what excludes what, what auto stands for, repeats, and being written out."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ddlflow.spec.pipeline import Cv, Pipeline

MINIMAL = """
name: first
data: {source: t.parquet, label: y}
model: {use: linear}
train: {objective: binary}
"""


def pipeline(cv: dict[str, Any], **sections: Any) -> Pipeline:
    return Pipeline.model_validate({**yaml.safe_load(MINIMAL), "cv": cv, **sections})


def test_the_defaults() -> None:
    cv = Cv()
    assert (cv.folds, cv.kind, cv.repeats, cv.seed, cv.predictions) == (5, "auto", 1, 7, False)
    assert [cv.kind_for(k) for k in ("binary", "multiclass")] == ["stratified"] * 2
    assert cv.kind_for("regression") == "plain"
    assert Cv(kind="group", by="g").kind_for("regression") == "group"
    assert Pipeline.model_validate(yaml.safe_load(MINIMAL)).cv is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "group"}, "kind group needs the column of the groups. Set cv.by"),
        ({"kind": "time"}, "needs the column of the times"),
        ({"kind": "predefined"}, "needs the column of the folds' names"),
        ({"by": "g"}, "by is for the kinds group, time, predefined, and kind is auto"),
        ({"kind": "plain", "by": "g"}, "Set cv.kind, or remove cv.by"),
        ({"kind": "group", "by": "g", "repeats": 2}, "Remove cv.repeats"),
        ({"gap": 1}, "gap is for kind time, and kind is auto"),
        ({"kind": "group", "by": "g", "window": 2}, "remove cv.window"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"folds": 1001}, "less than or equal to 1000"),
        ({"kind": "time", "by": "t", "gap": float("inf")}, "finite"),
    ],
)
def test_contradictions(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Cv(**values)


def test_stratified_folds_need_classes() -> None:
    with pytest.raises(ValidationError, match=r"regression has no classes\. Set cv\.kind to"):
        pipeline({"kind": "stratified"}, train={"objective": "regression"})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "predefined", "by": "f"},
        {"kind": "predefined", "by": "f", "folds": 3},
        {"kind": "time", "by": "t", "gap": 2, "window": 1},
        {"folds": None, "kind": "plain"},
    ],
)
def test_written_out_it_says_the_same(values: dict[str, Any]) -> None:
    spec = pipeline(values)
    assert Pipeline.model_validate(spec.model_dump(mode="json", by_alias=True)) == spec
    assert spec.cv is not None
    kind = spec.cv.kind
    assert spec.cv.folds == (values.get("folds") if kind == "predefined" else 5)


def test_the_column_of_the_folds_is_no_feature_of_all() -> None:
    by = {"kind": "group", "by": "g"}
    data = {"source": "t.parquet", "label": "y"}
    assert pipeline(by).data.exclude == ["g"]
    assert pipeline(by, data={**data, "exclude": ["a", "g"]}).data.exclude == ["a", "g"]
    assert pipeline(by, data={**data, "features": ["g"]}).data.exclude == []


def test_each_repeat_is_another_dealing() -> None:
    cv = Cv(repeats=20, seed=3)
    repeats = [cv.of_repeat(r) for r in range(20)]
    assert repeats[0] == Cv(seed=3)
    assert len({repeat.seed for repeat in repeats}) == 20
    assert all(repeat.repeats == 1 for repeat in repeats)
    assert repeats == [cv.of_repeat(r) for r in range(20)]
    assert all(Cv(**repeat.model_dump()) == repeat for repeat in repeats)
    for wrong in (-1, 20):
        with pytest.raises(IndexError):
            cv.of_repeat(wrong)


def test_only_what_decides_the_folds_enters_the_data() -> None:
    cv = Cv(predictions=True, repeats=3)
    assert cv.fold_settings("binary") == {"kind": "stratified", "folds": 5, "seed": 7}
    assert Cv(kind="stratified").fold_settings("binary") == cv.fold_settings("binary")
    grouped = [Cv(kind="group", by="g", seed=seed).fold_settings("binary") for seed in (1, 2)]
    assert grouped[0] == grouped[1]
    assert Cv(kind="time", by="t", window=2).fold_settings("binary")["window"] == 2
