"""The learning rate over the steps, as a pure function of the step.

torch's scheduler objects carry state that follows the calls made so far, and their chained form
gathers rounding errors on the way. A function of the step has nothing to save and nothing to
restore, so a resumed training takes exactly the learning rates that it would have taken, and the
trials of a sweep can each have a schedule of their own inside one program.
"""

import math

from ddlflow.spec.pipeline import Schedule

# Ranks on hosts with other C libraries may get other last bits from cos and pow, and one such bit
# would part their weights. Rounding to so many digits takes those bits away.
DIGITS = 12


def is_constant(schedule: Schedule) -> bool:
    """Whether the factor is 1 in every step, so that the loop need not ask again."""
    if schedule.warmup_steps > 0:
        return False
    return (
        schedule.use == "constant"
        or (schedule.use == "step" and schedule.factor == 1)
        or (schedule.use == "cosine" and schedule.end == 1)
    )


def factor(schedule: Schedule, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """The factor of the optimizer's ``lr`` in one step.

    Args:
        schedule: the pipeline's ``train.schedule``. First ``warmup_steps`` steps that rise evenly
            from 1 / (warmup_steps + 1), then the schedule itself over the steps that remain.
            step: multiplied by ``factor`` after every ``every_epochs`` epochs' worth of them.
            cosine: half a wave from 1 in the first of them to ``end`` in the last
            (Loshchilov and Hutter, "SGDR", 2017, without restarts).
        step: steps taken before this one, so 0 for the first.
        steps_per_epoch: at least 1.
        total_steps: of the whole training; a later step keeps the last factor of a cosine.

    Returns:
        A factor from 0 to 1.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return _rounded((step + 1) / (warmup + 1))
    step -= warmup
    if schedule.use == "step":
        return _rounded(schedule.factor ** (step // (schedule.every_epochs * steps_per_epoch)))
    if schedule.use == "cosine":
        last = total_steps - warmup - 1
        if last <= 0:
            return 1.0
        wave = (1 + math.cos(math.pi * min(step, last) / last)) / 2
        return _rounded(schedule.end + (1 - schedule.end) * wave)
    return 1.0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
