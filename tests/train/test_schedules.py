import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from ddlflow.spec.pipeline import Schedule
from ddlflow.train.schedules import factor, is_constant

schedules = st.builds(
    Schedule,
    use=st.sampled_from(["constant", "step", "cosine"]),
    warmup_steps=st.integers(0, 30),
    every_epochs=st.integers(1, 3),
    factor=st.floats(0.01, 1),
    end=st.floats(0, 1),
)


def factors(schedule, *, steps_per_epoch=4, total_steps=40):
    return [
        factor(schedule, step, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        for step in range(total_steps)
    ]


def torchs(make, total_steps=40):
    """The rates of a torch scheduler over an optimizer whose lr is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_step_is_torchs_step_lr():
    ours = factors(Schedule(use="step", every_epochs=2, factor=0.5))
    assert ours == pytest.approx(torchs(lambda o: lr_scheduler.StepLR(o, 8, gamma=0.5)))


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing_that_ends_with_the_last_step(end):
    ours = factors(Schedule(use="cosine", end=end))
    theirs = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, 39, eta_min=end))
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours[-1] == end


def test_warm_up_is_torchs_linear_lr_followed_by_the_schedule():
    def make(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 6, total_iters=5)
        wave = lr_scheduler.CosineAnnealingLR(optimizer, 34, eta_min=0.2)
        return lr_scheduler.SequentialLR(optimizer, [rise, wave], milestones=[5])

    ours = factors(Schedule(use="cosine", warmup_steps=5, end=0.2))
    assert ours == pytest.approx(torchs(make), abs=1e-12)
    assert ours[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


@given(schedules)
def test_it_stays_between_0_and_1_and_falls_after_the_warm_up(schedule):
    rates = factors(schedule)
    assert all(0 <= rate <= 1 for rate in rates)
    rising, falling = rates[: schedule.warmup_steps], rates[schedule.warmup_steps :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@given(schedules)
def test_constant_is_recognised_exactly(schedule):
    if is_constant(schedule):
        assert set(factors(schedule)) == {1.0}
    elif schedule.warmup_steps or schedule.use == "step":
        assert min(factors(schedule)) < 1


def test_edges():
    assert factors(Schedule(use="cosine"), total_steps=1) == [1.0]
    assert factors(Schedule(use="cosine", end=0.5), total_steps=2) == [1.0, 0.5]
    beyond = factor(Schedule(use="cosine", end=0.5), 99, steps_per_epoch=1, total_steps=9)
    assert beyond == 0.5
    only_rising = factors(Schedule(warmup_steps=9), total_steps=4)
    assert only_rising == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_last_bits_of_a_c_library_are_rounded_away():
    # 0.1 ** 2 is 0.010000000000000002 in binary floating point.
    assert factors(Schedule(use="step", factor=0.1))[8] == 0.01
