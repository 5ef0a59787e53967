"""What this process may use of its machine: cores, memory and GPUs, as its container allows.

A container's limits stand in control groups: version 2 has one tree, version 1 a tree for each
resource. Every group around a process limits it too, so the lowest counts.

Source: the Linux kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory in bytes.

    Attributes:
        total: that this process may use.
        free: of it; what the system would give up (its cache of files) counts as free.
    """

    total: int
    free: int


def has_gpu_driver() -> bool:
    """Whether there may be a driver that PyTorch finds a GPU by: NVIDIA's, or AMD's."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():
        return True  # elsewhere PyTorch itself is asked
    try:
        ctypes.CDLL("libcuda.so.1")  # what CUDA itself opens, in a container and on WSL too
    except OSError:
        return False
    return True


def cores(root: Path = ROOT) -> int:
    """Cores that this process may use: its affinity, and the container's quota."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    for group in _groups(root, "cpu"):
        with suppress(OSError, ValueError):  # no such file, or "max": no quota
            if (group / "cpu.max").exists():
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota = int((group / "cpu.cfs_quota_us").read_text())
                period = int((group / "cpu.cfs_period_us").read_text())
            if quota > 0:
                found = min(found, max(1, quota // period))
    return found


def memory(root: Path = ROOT) -> Memory:
    """Main memory of the machine, or of the container where it has less."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for group in _groups(root, "memory"):
        with suppress(OSError, ValueError):
            limit, used = _limit(group)
            total = min(total, limit)
            free = min(free, max(0, limit - used))
    return Memory(total, free)


def _limit(group: Path) -> tuple[int, int]:
    """A group's limit of memory, and how much of it is taken and would not be given up.

    Raises:
        OSError, ValueError: it has none.
    """
    if (group / "memory.max").exists():
        names, cache = ("memory.max", "memory.current"), "inactive_file"
    else:
        names, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    limit, used = (int((group / name).read_text()) for name in names)
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == cache:
            used -= int(value)
    return limit, used


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may limit a resource, of both versions."""
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = [mounted / controllers, mounted / controller] if controllers else [mounted]
        top = next((one for one in tops if one.is_dir()), mounted)
        inner = top / path.lstrip("/")
        # A container may see its own group as the top, by whatever path the host calls it.
        yield from (one for one in (inner, *inner.parents) if one.is_relative_to(top))
