"""What a training tells, as a rank says it, and back."""

import pytest

from ddlflow.rank_protocol import RankSaid, event_line, event_of
from ddlflow.train.events import (
    CheckpointSaved,
    DigestMarked,
    EpochEnded,
    Event,
    FactsFound,
    Noted,
    Progressed,
    Resumed,
    from_said,
    to_said,
)
from ddlflow.train.facts import Facts

HERE = Facts("node-3", "x86_64 AVX2", {"torch": "2.13.0"}, 1, 4, 1 << 34, 1 << 33, ["H100"])


@pytest.mark.parametrize(
    "event",
    [
        FactsFound(HERE),
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
    heard = event_of(event_line(to_said(event)))
    assert isinstance(heard, RankSaid)
    assert from_said(heard) == event


def test_another_modules_words_are_none_of_these() -> None:
    assert from_said(RankSaid("ready", {"pid": 3})) is None
