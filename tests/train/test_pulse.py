"""When standing still is told as a hang; by moments that the test gives."""

import queue

import pytest

from ddlflow.rank_protocol import RankBeat
from ddlflow.train.pulse import BEAT_S, FIRST_S, Pulse


def pulse_at_zero(limit_s: float) -> Pulse:
    pulse = Pulse(lambda event: None, limit_s)
    pulse.at = pulse._seen = 0.0
    return pulse


def step(pulse: Pulse, at: float) -> None:
    pulse.at = at
    pulse.step += 1


def test_the_first_step_has_its_own_time() -> None:
    pulse = pulse_at_zero(2.0)
    assert pulse.look(FIRST_S - 1) == RankBeat(0, FIRST_S - 1, stuck=False)
    assert pulse.look(FIRST_S + 1).stuck


def test_a_limit_above_the_first_steps_time_holds_for_it_too() -> None:
    pulse = pulse_at_zero(500.0)
    assert not pulse.look(499).stuck
    assert pulse.look(501).stuck


def test_a_slow_start_does_not_hide_a_hang_later() -> None:
    """Importing and meeting took a minute; steps of milliseconds hang after the limit all same."""
    pulse = pulse_at_zero(2.0)
    step(pulse, 60.0)
    assert not pulse.look(60.5).stuck
    for at in (61.0, 62.0, 63.0):
        step(pulse, at)
        assert pulse.look(at) == RankBeat(pulse.step, 0, stuck=False)
    assert not pulse.look(64.9).stuck
    hung = pulse.look(65.1)
    assert hung.stuck
    assert hung.idle_s == pytest.approx(2.1)


def test_slow_steps_widen_the_limit_to_ten_times_the_longest() -> None:
    pulse = pulse_at_zero(2.0)
    step(pulse, 1.0)
    pulse.look(1.0)
    step(pulse, 7.0 + BEAT_S)  # a step that took at least 6 s, as it is seen once a beat
    assert not pulse.look(8.0).stuck
    step(pulse, 8.5)
    assert not pulse.look(8.5 + 59).stuck
    assert pulse.look(8.5 + 61).stuck


def test_rest_and_a_limit_of_zero_are_no_hang() -> None:
    for pulse in (pulse_at_zero(2.0), pulse_at_zero(0.0)):
        step(pulse, 1.0)
        pulse.look(1.0)
        pulse.resting = True
        assert not pulse.look(1e6).stuck
        pulse.resting = False
        assert pulse.look(1e6).stuck == bool(pulse._limit_s)


def test_a_thread_tells_of_it_and_so_does_the_work() -> None:
    told: queue.Queue[RankBeat] = queue.Queue()
    pulse = Pulse(told.put, 2.0).start()
    pulse.step = 3
    pulse.tell()
    assert told.get(timeout=60).step == 3
    pulse.step = 4
    assert told.get(timeout=60).step == 4


def test_reading_shards_for_the_first_time_is_no_standing_still() -> None:
    """In any thread; and it does not count as a step's time when it has ended."""
    pulse = pulse_at_zero(2.0)
    with pulse.fetching():
        with pulse.fetching():
            pass
        assert not pulse.look(pulse.at + 1e6).stuck
    ended = pulse.at
    assert not pulse.look(ended + FIRST_S - 1).stuck  # the first step is still to come
    assert pulse.look(ended + FIRST_S + 1).stuck
