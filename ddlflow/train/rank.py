"""One rank: a process that an engine's worker starts as ``python -m ddlflow.train.rank``.

Where it can, it is forked instead from a process that has imported `ddlflow.train.preload`; all
else is the same. Lists of processes show it as `NAME`.

It reads its job from standard input and writes events to a pipe of their own, so what user code
prints is only log. When standard input ends, the worker is dead and so is the rank: none outlives
the command that started it.
"""

import argparse
import contextlib
import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddlflow.rank_protocol import (
    EVENTS_OPTION,
    RankError,
    RankEvent,
    RankResult,
    RankStart,
    RankStarted,
    RankStopped,
    StoreAddress,
    StoreOpened,
    event_line,
)

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

NAME = "ddlflow-rank"
PRELOAD = ("ddlflow.train.preload",)
Emit = Callable[[RankEvent], None]
COLLECTIVE_TIMEOUT_S = 600.0  # a rank that hangs for longer fails the gang


def main() -> int:
    """Runs one rank; the exit status is 0 when it was done or asked to stop."""
    sys.stdout, sys.stderr = _log(1), _log(2)
    with contextlib.suppress(OSError):  # another system than Linux
        Path("/proc/self/comm").write_text(NAME)
    parser = argparse.ArgumentParser(prog="ddlflow.train.rank")
    parser.add_argument(EVENTS_OPTION, type=int, required=True)
    events = os.fdopen(parser.parse_args().events_fd, "w", encoding="utf-8")
    lock = threading.Lock()

    def emit(event: RankEvent) -> None:
        with lock:
            events.write(event_line(event) + "\n")
            events.flush()

    first = sys.stdin.readline()
    if not first:
        return 1
    start = RankStart(**json.loads(first))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    emit(RankStarted(os.getpid()))
    try:
        _run(start, emit, stop)
    except Exception as error:  # reported to the driver, whatever it is
        emit(RankError(type(error).__name__, str(error), traceback.format_exc()))
        return 1
    return 0


class _Lossy(io.FileIO):
    """A log on a full disk loses words; whoever prints goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def _log(fd: int) -> io.TextIOWrapper:
    raw = _Lossy(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True, errors="replace")


def _run(start: RankStart, emit: Emit, stop: threading.Event) -> None:
    from ddlflow.train.job import Job
    from ddlflow.train.pulse import Pulse

    job, rank, world = Job.from_json(start.payload), start.rank, start.world

    # Before the imports, which take seconds.
    pulse = Pulse(emit, job.silence_s).start()
    import torch

    from ddlflow.train.events import FactsFound, to_said
    from ddlflow.train.facts import facts_here
    from ddlflow.train.loop import Stopped
    from ddlflow.train.parallel.same_host import meet
    from ddlflow.train.training import run

    job = job.here()
    if job.code is not None:
        sys.path.insert(0, job.code)
    torch.set_num_threads(job.threads)
    fast = job.train.determinism == "off"
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    torch.backends.cudnn.benchmark = fast
    if fast:
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    # Else every torch.empty would be filled with NaN, a pass over memory for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device("cpu")
    if job.device == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    lines = _watch_worker()
    emit(to_said(FactsFound(facts_here())))
    group = _join(start, device, emit, lines) if world > 1 else None
    # On GPUs gradients do not come to the processor at all.
    near = meet(rank, world, group) if world > 1 and device.type == "cpu" else None
    try:
        result = run(
            job,
            rank,
            world,
            group,
            device,
            tell=lambda event: emit(to_said(event)),
            must_stop=stop.is_set,
            pulse=pulse,
            gather=None if near is None else near.all_gather,
        )
    except Stopped:
        emit(RankStopped())
        return
    except Exception:
        pulse.tell()  # the exact step, before the error is told of
        raise
    emit(RankResult({} if result is None else result.to_json()))


def _watch_worker() -> "queue.Queue[str]":
    """The lines of standard input as they come; its end is the worker's end, and this rank's."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        while line := sys.stdin.readline():
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, name="worker-watch", daemon=True).start()
    return lines


def _join(
    start: RankStart, device: "torch.device", emit: Emit, lines: "queue.Queue[str]"
) -> "ProcessGroup | None":
    """Meets the other ranks at rank 0's store, on a port of the system's choice.

    Who wants to reach it from elsewhere has to know the gang's secret (see `gate`).
    """
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    from ddlflow.train.events import Noted, to_said
    from ddlflow.train.parallel import gate

    rank, world, secret = start.rank, start.world, start.secret
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    store = None
    if rank == 0:
        opened = gate.listening(gate.LOOPBACK)
        port = opened.getsockname()[1]
        # TCPStore by itself listens on every interface.
        store = TCPStore(
            gate.LOOPBACK,
            port,
            world,
            is_master=True,
            wait_for_workers=False,
            timeout=timeout,
            master_listen_fd=opened.detach(),
        )
        door = gate.open_door(start.host, port, secret)
        if door.everywhere:
            where = f"{start.host} is no address of its own machine"
            emit(to_said(Noted(f"Rank 0 listens on every interface: {where}.")))
        emit(StoreOpened(door.port))
    met = StoreAddress(**json.loads(lines.get()))
    watch = threading.Timer(met.timeout_s, _not_met, (emit, rank, met.timeout_s))
    watch.daemon = True
    watch.start()
    interface = _interface(start.host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    if store is None:
        way = gate.open_way(met.store_host, met.store_port, secret)
        store = TCPStore(gate.LOOPBACK, way.port, world, is_master=False, timeout=timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    watch.cancel()
    return dist.group.WORLD


def _not_met(emit: Emit, rank: int, limit_s: float) -> None:
    """Ends a rank that cannot reach the others: what they meet by would wait for minutes."""
    message = f"rank {rank} did not meet the others within {limit_s:g} s"
    emit(RankError("StartTimeout", message, ""))
    os._exit(1)


def _interface(ip: str) -> str | None:
    """The network interface that has this address: gloo's own guess goes by the host's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == ip for address in addresses):
            return str(name)
    return None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # no wait for threads or process groups whose peers may be gone
