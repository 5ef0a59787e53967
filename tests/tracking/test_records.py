"""Records as they stand in a spool and back; those of other versions."""

import json

import pytest

from ddlflow.tracking.records import (
    OPS,
    DatasetLogged,
    FileLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RunBegan,
    RunEnded,
    RunResumed,
    SpoolRecord,
    TagsLogged,
    TextLogged,
    UnknownRecord,
    from_json,
    to_json,
)

ONE_OF_EACH: list[SpoolRecord] = [
    RunBegan(1, "ab", "sqlite:///x", "ddlflow", "one", {"a": "b"}, "parent", None),
    RunResumed(2),
    ParamsLogged(3, {"train.epochs": "3"}),
    TagsLogged(4, {"a": "b"}),
    MetricsLogged(5, 7, {"loss": 0.5}),
    TextLogged(6, "a.txt", "text"),
    FileLogged(7, "/a/b", None),
    DatasetLogged(8, "t", "cd", "t.csv", {"a": "double"}, {"rows": 3}, "training"),
    ModelLogged(9, "/m", "model", None, None, {}, ["torch"], None, {}, "/w.whl"),
    RunEnded(10, "FAILED"),
]


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: OPS[type(record)])
def test_a_record_comes_back(record: SpoolRecord) -> None:
    text = json.dumps(to_json(record))
    assert text.startswith(f'{{"op": "{OPS[type(record)]}", "t": {record.t}')
    assert from_json(json.loads(text)) == record


def test_each_kind_is_tried() -> None:
    assert {type(record) for record in ONE_OF_EACH} == OPS.keys()


def test_a_model_of_an_earlier_version_has_no_wheel() -> None:
    values = to_json(ONE_OF_EACH[8])
    del values["wheel"]
    found = from_json(values)
    assert isinstance(found, ModelLogged)
    assert found.wheel is None


@pytest.mark.parametrize(
    "values",
    [{"op": "song", "t": 1, "tune": 2}, {"op": "end", "t": 1}, {"op": "end", "t": 1, "a": 2}],
)
def test_what_another_version_wrote_is_passed_on_as_it_is(values: dict[str, object]) -> None:
    found = from_json(values)
    assert isinstance(found, UnknownRecord)
    assert (found.t, found.op) == (1, values["op"])
    assert to_json(found) == values
