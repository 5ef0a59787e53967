"""The watch over a gang: whose silence counts."""

from types import SimpleNamespace

import pytest

from ddlflow.engines import GangJob, gang, ignore

JOB = GangJob("m", {}, 1, "logs", {}, (), 60.0, silence_s=5.0)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        stand_in = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(gang, "time", stand_in)


def watched(clock: Clock, looks: int, every_s: float) -> list[str]:
    """The kinds of failure found by looking at a rank that was heard of at the start alone."""
    member = gang._Member(0, "here", beaten=clock.now, step=3)
    here = gang._GangWatch(JOB, [member], SimpleNamespace(), ignore, looked=clock.now)
    for _ in range(looks):
        clock.now += every_s
        here.look_for_silence()
    return [failure.kind for _, _, failure in here.causes]


def test_a_rank_that_is_not_heard_of_is_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(Clock(monkeypatch), looks=9, every_s=0.5) == []
    assert watched(Clock(monkeypatch), looks=11, every_s=0.5) == ["Hung"]


def test_a_driver_that_slept_itself_has_watched_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended for a minute (a laptop's lid, SIGSTOP), it does not blame the ranks."""
    assert watched(Clock(monkeypatch), looks=1, every_s=60.0) == []
    assert watched(Clock(monkeypatch), looks=2, every_s=60.0) == []
    assert watched(Clock(monkeypatch), looks=3, every_s=60.0) == ["Hung"]  # 2 s of each count


def test_the_start_is_timed_from_the_end_of_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    here = gang._GangWatch(
        JOB, [gang._Member(0, "here")], SimpleNamespace(), ignore, start_by=160.0
    )
    clock.now = 150.0
    here.heard(gang.Heard(0, [(150.0, '{"event": "importing"}')]))
    assert here.start_by == 210.0
    here.never_started()
    assert [failure.kind for _, _, failure in here.causes] == ["StartTimeout"]
