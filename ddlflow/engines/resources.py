"""How many workers and threads: what a site says, or what the machines have."""

from dataclasses import dataclass

from ddlflow import machine
from ddlflow.spec.site import EngineSection


@dataclass(frozen=True, slots=True)
class Resources:
    """What a site gives.

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


def resources(
    engine: EngineSection, *, gpus: int, cores: int | None = None, workers: int | None = None
) -> Resources:
    """Resolves ``auto``.

    Args:
        engine: the site's engine section.
        gpus: GPUs to train on; 0 on a CPU.
        cores: of the machine; None asks this one.
        workers: that are there already, on machines of their own; ``cores`` are a worker's then.
    """
    cores = cores or machine.cores()
    if engine.workers != "auto":
        slots, why = engine.workers, f"engine.workers is {engine.workers}"
        world: int | None = slots
    elif workers is not None:
        slots, why = workers, f"{workers} workers are there"
        world = workers if gpus else None
    elif gpus:
        slots, world, why = gpus, gpus, f"one for each of {gpus} GPUs"
    else:
        slots, world, why = cores, None, f"one for each of {cores} cores"
    fitting = max(1, cores if workers is not None else cores // slots) if gpus else 1
    threads = fitting if engine.threads == "auto" else engine.threads
    return Resources(slots, threads, world, why)
