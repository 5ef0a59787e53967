"""What ranks and workers say to each other comes back from its line; what is none is refused."""

import json

import pytest

from ddlflow.rank_protocol import (
    RankBeat,
    RankError,
    RankEvent,
    RankImporting,
    RankResult,
    RankSaid,
    RankStart,
    RankStarted,
    RankStopped,
    StoreAddress,
    StoreOpened,
    event_line,
    event_of,
    line_of,
)


@pytest.mark.parametrize(
    "event",
    [
        RankImporting(),
        RankStarted(7),
        RankBeat(40, 1.5, stuck=False),
        StoreOpened(4711),
        RankResult({"steps": 2**70}),
        RankStopped(),
        RankError("ValueError", "the third row is odd", "Traceback"),
        RankSaid("epoch", {"epoch": 1, "loss": 0.5}),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_is_a_line_and_comes_back(event: RankEvent) -> None:
    line = event_line(event)
    assert "\n" not in line
    assert event_of(line) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "words",
        "7",
        "[]",
        "{}",
        '{"event": 3}',
        '{"event": "store"}',
        '{"event": "beat", "x": 1}',
    ],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        event_of(line)


def test_what_a_rank_is_told_comes_back_and_shows_no_secret() -> None:
    start = RankStart(1, 2, "10.0.0.7", "of the gang", 4, {"threads": 1})
    assert RankStart(**json.loads(line_of(start))) == start
    assert "of the gang" not in repr(start)
    address = StoreAddress("10.0.0.6", 4711, 30.0)
    assert StoreAddress(**json.loads(line_of(address))) == address
