"""Worker processes of this machine for data work.

Not concurrent.futures: there a worker that dies breaks the whole pool without saying which item it
had, running items cannot be cancelled, its workers outlive a driver that is killed, and starting
them imports the user's script again. Here each worker is a fresh interpreter, or forked from a
server that has PyTorch imported (never from a driver with threads), on one end of a socket pair;
the end of that connection ends the worker.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ddlflow.engines.environment import rank_environment, thread_variables
from ddlflow.engines.fork_owner import Offer
from ddlflow.engines.fork_server import Order
from ddlflow.engines.forked import Forked
from ddlflow.engines.mapping import RETRIES, ItemOutcome
from ddlflow.engines.pool_worker import OPTION
from ddlflow.errors import EngineError

_AHEAD = 2  # items sent to a worker: the one at work and the next
# The driver's sys.path makes whatever the driver can import importable in the worker.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ddlflow.engines.pool_worker import serve; serve(int(sys.argv[2]))"
)


@dataclass(slots=True)
class PoolItem:
    """One item: its place in the map, its pickled function and argument, the workers it lost."""

    index: int
    payload: bytes
    deaths: int = 0


@dataclass(slots=True)
class Worker:
    """A worker process and the items that it has, the one at work first."""

    process: subprocess.Popen[bytes] | Forked
    connection: Connection
    items: deque[PoolItem] = field(default_factory=deque)

    def end(self) -> int:
        """End the process, whatever it does, and return its exit status."""
        self.connection.close()
        if not self.items:
            # Idle: it leaves by itself as its connection ends.
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=5)
        self.process.kill()
        return self.process.wait()


def start_worker(threads: int, offer: Offer | None = None) -> Worker:
    """Start a worker whose libraries use that many threads.

    Args:
        threads: of its numeric libraries.
        offer: a fork server of the same environment that is ready, if there is one.
    """
    ours, its = socket.socketpair()
    with its:
        process = None if offer is None else _forked(offer, threads, its.fileno())
        return Worker(process or _fresh(threads, its.fileno()), Connection(ours.detach()))


def _fresh(threads: int, tasks: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(tasks)],
        stdin=subprocess.DEVNULL,
        stdout=2,  # standard output belongs to the command's own answer
        env=os.environ | thread_variables(threads),
        pass_fds=(tasks,),
    )


def _forked(offer: Offer, threads: int, tasks: int) -> Forked | None:
    order = Order(
        "ddlflow.engines.pool_worker",
        (json.dumps(sys.path),),
        OPTION,
        str(Path.cwd()),
        rank_environment(threads),
        has_own_path=True,
    )
    with Path(os.devnull).open("rb") as nothing, suppress(OSError):  # the server has ended
        return Forked(offer, order, (nothing.fileno(), 2, tasks))
    return None


class ProcessPool:
    """The items of one map over some workers. Replaces workers that die."""

    def __init__(
        self,
        slots: int,
        threads: int,
        idle: list[Worker],
        offer: Callable[[], Offer | None] = lambda: None,
    ) -> None:
        """Make an empty pool.

        Args:
            slots: workers at once.
            threads: of each.
            idle: the engine's workers that rest; taken from as needed, given back by `close`.
            offer: gives a fork server that is ready, once there is one.
        """
        self._slots = slots
        self._offer = offer
        self._threads = threads
        self._waiting: deque[PoolItem] = deque()
        self._ready: deque[tuple[int, ItemOutcome]] = deque()
        self._idle = idle
        self._workers: list[Worker] = []
        self._closed = False

    def start(self, index: int, function: Callable[[Any], Any], item: Any) -> None:
        """Hand in an item."""
        self._waiting.append(PoolItem(index, pickle.dumps((function, item))))
        self._send()

    def finish(self) -> tuple[int, ItemOutcome]:
        """Wait for any item and return its index and outcome."""
        if self._closed:
            raise EngineError("The engine was closed before this map was done.")
        while not self._ready:
            self._send()
            for connection in wait([w.connection for w in self._workers if w.items]):
                worker = next(w for w in self._workers if w.connection is connection)
                try:
                    outcome = worker.connection.recv()
                except (EOFError, OSError):
                    self._bury(worker)
                else:
                    self._ready.append((worker.items.popleft().index, outcome))
        return self._ready.popleft()

    def close(self) -> None:
        """Give idle workers back and end those still at work: what they do is not wanted."""
        for worker in self._workers:
            if worker.items:
                worker.end()
            else:
                self._idle.append(worker)
        self._workers.clear()
        self._closed = True

    def _send(self) -> None:
        for ahead in range(_AHEAD):
            for worker in list(self._workers):
                if self._waiting and len(worker.items) == ahead:
                    self._give(worker)
            while ahead == 0 and self._waiting and len(self._workers) < self._slots:
                worker = self._take()
                self._workers.append(worker)
                self._give(worker)

    def _take(self) -> Worker:
        """An idle worker, or a new one; one that has PyTorch comes first."""
        offer = self._offer()
        while self._idle:
            worker = self._idle.pop()
            if offer is None or isinstance(worker.process, Forked):
                return worker
            worker.end()
        return start_worker(self._threads, offer)

    def _give(self, worker: Worker) -> None:
        item = self._waiting.popleft()
        worker.items.append(item)
        # A worker that is dead by now is found, with its items, by `finish`.
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send_bytes(item.payload)

    def _bury(self, worker: Worker) -> None:
        """Take a dead worker's items back; the one that it worked on has one try fewer."""
        self._workers.remove(worker)
        first, *others = worker.items
        status = worker.end()
        first.deaths += 1
        self._waiting.extendleft(reversed(others))
        if first.deaths <= RETRIES:
            self._waiting.appendleft(first)
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        hint = "; out of memory?" if status == -signal.SIGKILL else ""
        text = (
            f"Item {first.index} ended {first.deaths} worker processes, the last one "
            f"(process {worker.process.pid}) with {how}{hint}. Look at that item, or give the "
            "machine fewer workers (engine.workers)."
        )
        self._ready.append((first.index, ItemOutcome(error=EngineError(text))))
