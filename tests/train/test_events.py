"""What a rank tells, as JSON and back: an engine adds the rank and the host."""

import json

import pytest

from ddlflow.train.events import (
    CheckpointSaved,
    DigestMarked,
    EpochEnded,
    Event,
    Noted,
    Progressed,
    Resumed,
    from_json,
    to_json,
)


@pytest.mark.parametrize(
    "event",
    [
        Noted("There is no space."),
        Resumed(58, [{"epoch": 1, "loss": 0.5}]),
        CheckpointSaved(7),
        Progressed(3, 90, 300, 1.5, 1, 0.25),
        DigestMarked(40, "ab", 0.125),
        EpochEnded({"epoch": 2, "step": 20, "loss": 0.5, "val_auroc": 0.75}),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_comes_back(event: Event) -> None:
    passed_on = json.loads(json.dumps(to_json(event))) | {"rank": 1, "host": "node-3"}
    assert from_json(passed_on) == event


@pytest.mark.parametrize("name", ["started", "facts", "beat", "store"])
def test_what_a_process_says_of_itself_is_none_of_these(name: str) -> None:
    assert from_json({"event": name, "rank": 0, "host": "a", "pid": 3}) is None
