"""What a training's bits and speed depend on where a rank runs, as that rank says itself."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import ddlflow
from ddlflow import machine

PACKAGES = ("torch", "numpy", "pyarrow")
DECIDE_BITS = ("torch", "numpy")


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one process on its machine.

    Attributes:
        host: the machine's own name.
        processor: its class: two of one class give the same last bits.
        versions: of Python, ddlflow and `PACKAGES`.
        threads: that torch uses.
        cores: that the process may use.
        memory_bytes: that it may use; a container's limit where that is lower.
        free_bytes: of that, when it was asked.
        gpus: their names.
    """

    host: str
    processor: str
    versions: Mapping[str, str]
    threads: int
    cores: int
    memory_bytes: int
    free_bytes: int
    gpus: Sequence[str]


def facts_here() -> Facts:
    """Of this process."""
    import torch  # here: what only reads facts does not wait for it

    memory = machine.memory()
    has_gpu = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count() * has_gpu)]
    return Facts(
        host=os.uname().nodename,
        processor=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        versions={
            "python": platform.python_version(),
            "ddlflow": ddlflow.__version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
        threads=torch.get_num_threads(),
        cores=machine.cores(),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        gpus=gpus,
    )


def deciding(facts: Facts, device: str) -> dict[str, str]:
    """What has to be the same wherever the same bits are to come out."""
    found = {name: facts.versions[name] for name in DECIDE_BITS}
    found["processor"] = facts.processor
    if device == "cuda":
        found["GPU"] = ", ".join(sorted(set(facts.gpus)))
    return found


def unlike(ranks: Mapping[int, Facts], device: str) -> str:
    """What decides bits and is not the same on all ranks, with the hosts; empty if all is."""
    parts = []
    known = {rank: deciding(facts, device) for rank, facts in ranks.items()}
    for name in next(iter(known.values()), {}):
        where: dict[str, list[str]] = {}
        for rank, found in known.items():
            where.setdefault(found[name], []).append(f"{ranks[rank].host} (rank {rank})")
        if len(where) > 1:
            values = (f"{value} on {', '.join(hosts)}" for value, hosts in where.items())
            parts.append(f"{name} is {' and '.join(values)}")
    return "; ".join(parts)
