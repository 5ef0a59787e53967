"""How many workers and threads: what a site says, or what this machine has."""

import os
from dataclasses import dataclass

from ddlflow.spec.site import Engine


@dataclass(frozen=True, slots=True)
class Resources:
    """Workers for data work, and the ranks and threads of a training.

    Attributes:
        slots: worker processes; one data task or one rank each.
        world: ranks of a training.
        threads: of one rank.
        why: a clause for the user.
    """

    slots: int
    world: int
    threads: int
    why: str


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123 - no path work
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
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
        slots = world = engine.workers
        why = f"engine.workers is {slots}"
    elif gpus:
        slots, world = gpus, gpus
        why = f"a rank for each of {gpus} GPUs"
    else:
        slots = world = cores
        why = f"a rank for each of {cores} cores"
    threads = engine.threads if engine.threads != "auto" else max(1, cores // world)
    return Resources(slots, world, threads, f"{why}, {threads} threads each")
