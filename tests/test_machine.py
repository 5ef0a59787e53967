"""Cores and memory as a container allows: real control groups, and laid-out ones."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ddlflow.machine import cores, memory

GB = 10**9


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_groups_the_machine_is_what_there_is(tmp_path: Path) -> None:
    found = memory(tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.free <= found.total
    assert cores(tmp_path) >= 1


@pytest.mark.parametrize("place", ["", "kubepods/pod1"], ids=["own top", "inside"])
def test_version_2(tmp_path: Path, place: str) -> None:
    folder = f"sys/fs/cgroup/{place}".rstrip("/")
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": f"0::/{place}\n",
            f"{folder}/memory.max": "2000000000\n",
            f"{folder}/memory.current": "1500000000\n",
            f"{folder}/memory.stat": "anon 7\ninactive_file 1000000000\n",
            f"{folder}/cpu.max": "100000 100000\n",
        },
    )
    assert (memory(root).total, memory(root).free) == (2 * GB, 1_500_000_000)
    assert cores(root) == 1


def test_the_lowest_limit_of_all_groups_around_counts(tmp_path: Path) -> None:
    none = {"memory.max": "max\n", "memory.current": "1\n", "memory.stat": "", "cpu.max": "max 1\n"}
    inner = {f"sys/fs/cgroup/a/b/{name}": text for name, text in none.items()}
    outer = {
        "sys/fs/cgroup/a/memory.max": "3000000000\n",
        "sys/fs/cgroup/a/memory.current": "1000000000\n",
        "sys/fs/cgroup/a/memory.stat": "",
        "proc/self/cgroup": "0::/a/b\n",
    }
    found = memory(lay(tmp_path, inner | outer))
    assert (found.total, found.free) == (3 * GB, 2 * GB)


def test_version_1_where_the_container_does_not_see_the_hosts_path(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "900000000\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 1\ntotal_inactive_file 400000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (memory(root).total, memory(root).free) == (GB, 500_000_000)
    assert cores(root) == 1


def test_an_endless_limit_of_version_1_is_none(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "900000000\n",
            "sys/fs/cgroup/memory/memory.stat": "",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory(root).total == psutil.virtual_memory().total
    assert cores(root) == cores(tmp_path / "none")


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group of 500 MB."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = f"ddlflow-{uuid.uuid4().hex}"
        if "memory" in controllers.split(","):
            made, limit = Path("/sys/fs/cgroup/memory" + path) / name, "memory.limit_in_bytes"
        elif not controllers:
            made, limit = Path("/sys/fs/cgroup" + path) / name, "memory.max"
        else:
            continue
        try:
            made.mkdir()
            (made / limit).write_text("500000000")
        except OSError:
            continue
        yield made
        made.rmdir()
        return
    pytest.skip("no control group for memory can be made here")


def test_a_real_limit_is_seen_from_inside(group: Path) -> None:
    code = "from ddlflow.machine import memory; found = memory(); print(found.total, found.free)"
    inside = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
    done = subprocess.run(
        ["sh", "-c", inside, sys.executable, code], capture_output=True, text=True, check=True
    )
    total, free = map(int, done.stdout.split())
    assert 499_000_000 < total <= 500_000_000
    assert 0 < free < total
