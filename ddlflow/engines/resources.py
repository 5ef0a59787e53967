"""How many workers and threads: what a site says, or what this machine has."""

import os
from dataclasses import dataclass
from pathlib import Path

from ddlflow.spec.site import Engine


@dataclass(frozen=True, slots=True)
class Resources:
    """What a site gives on the machine that asks.

    Attributes:
        slots: worker processes; one data task or one rank each.
        threads: of one rank. One by default on a CPU: ranks scale where threads wait in barriers,
            and one thread keeps its speed when another process wants a core.
        world: ranks of a training; None leaves it to the size of the training.
        why: a clause for the user.
    """

    slots: int
    threads: int
    world: int | None
    why: str


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores


def resources(engine: Engine, *, gpus: int, cores: int | None = None) -> Resources:
    """Resolves ``auto``.

    Args:
        engine: the site's engine section.
        gpus: GPUs to train on; 0 on a CPU.
        cores: of this machine; None asks it.
    """
    cores = cores or available_cores()
    if engine.workers != "auto":
        slots, why = engine.workers, f"engine.workers is {engine.workers}"
        world: int | None = slots
    elif gpus:
        slots, world, why = gpus, gpus, f"one for each of {gpus} GPUs"
    else:
        slots, world, why = cores, None, f"one for each of {cores} cores"
    fitting = max(1, cores // slots) if gpus else 1
    threads = fitting if engine.threads == "auto" else engine.threads
    return Resources(slots, threads, world, why)
