"""Gathering through Unix sockets: against torch's own bytes, and where it cannot be."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest
import torch

from ddlflow.engines.causes import PEER, severity_of
from ddlflow.train.parallel.same_host import CHUNK_BYTES, SameHost

MANY = CHUNK_BYTES // 4 * 40 + 3  # float32 numbers: far more than the buffers of a socket


def connected(world: int) -> list[SameHost]:
    peers: list[dict[int, socket.socket]] = [{} for _ in range(world)]
    for one, other in combinations(range(world), 2):
        peers[one][other], peers[other][one] = socket.socketpair()
    return [SameHost(rank, sockets) for rank, sockets in enumerate(peers)]


def at_once(world: int, function: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(world) as threads:
        list(threads.map(function, range(world)))


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("numbers", [1, 7, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_every_rank_gets_what_all_gave(world: int, numbers: int, dtype: torch.dtype) -> None:
    hosts = connected(world)

    def given(step: int, rank: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(100 * step + rank)
        return (torch.randn(numbers, generator=random) * 1000).to(dtype)

    def of_rank(rank: int) -> None:
        everyone = torch.zeros(world * numbers, dtype=dtype)
        for step in range(3 if numbers == MANY else 50):
            hosts[rank].all_gather(everyone, given(step, rank))
            assert torch.equal(everyone, torch.cat([given(step, other) for other in range(world)]))

    at_once(world, of_rank)
    for host in hosts:
        host.close()


def test_a_rank_that_is_gone_is_no_failure_of_ones_own() -> None:
    """The gang names the one that died first, not those that missed it."""
    hosts = connected(3)
    hosts[2].close()
    for rank in range(2):
        with pytest.raises(ConnectionError, match="connection to rank 2 was closed") as caught:
            hosts[rank].all_gather(torch.zeros(30), torch.zeros(10))
        assert severity_of(type(caught.value).__name__, str(caught.value)) == PEER
    for host in hosts:
        host.close()


def test_a_rank_that_ends_in_the_middle() -> None:
    hosts = connected(2)

    def of_rank(rank: int) -> None:
        if rank == 1:
            threading.Timer(0.2, hosts[1].close).start()
        else:
            with pytest.raises(ConnectionError):
                hosts[0].all_gather(torch.zeros(2 * MANY), torch.zeros(MANY))

    at_once(2, of_rank)
    hosts[0].close()


MEET = """
import json, os, sys, tempfile
import torch.distributed as dist
from ddlflow.train.parallel import same_host
rank, folder, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if what == "another host" and rank == 1:
    same_host._here = lambda: "another host"
if what == "no system that tells" and rank < 2:
    same_host._here = lambda: ""
if what == "a long path" and rank == 1:
    tempfile.tempdir = os.path.join(folder, "x" * 120)
    os.mkdir(tempfile.tempdir)
if what == "out of reach" and rank == 2:
    connected = same_host._connected
    same_host._connected = lambda rank, paths, door: connected(rank, ("/nowhere",) * 3, door)
if what == "out of reach":
    same_host._MEET_S = 1.0
dist.init_process_group(
    "gloo", store=dist.FileStore(os.path.join(folder, "store"), 3), rank=rank, world_size=3
)
near = same_host.meet(rank, 3, dist.group.WORLD)

dist.barrier()
print(json.dumps([near is not None]))
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("what", "is_near"),
    [
        ("one host", True),
        ("another host", False),
        ("no system that tells", False),
        ("a long path", False),
        ("out of reach", False),
    ],
)
def test_all_ranks_meet_or_none_does(tmp_path: Path, what: str, is_near: bool) -> None:
    (tmp_path / "tmp").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEET, str(rank), str(tmp_path), what],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        )
        for rank in range(3)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [json.loads(one)[0] for one in said] == [is_near] * 3
    assert list((tmp_path / "tmp").glob("ddlflow-ranks*")) == []
