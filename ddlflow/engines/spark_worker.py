"""What runs in a task of Spark, on an executor: a data worker, or the holder of a rank.

Free of PySpark: each calls the driver and does what that says.
"""

import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ddlflow.engines import on_worker
from ddlflow.engines.call_home import GONE, Home, call
from ddlflow.engines.gang import Ended, Heard
from ddlflow.engines.pool_worker import work_through
from ddlflow.engines.rank_process import Lines

# A worker that waits longer gives its core back: other jobs of the session may want it.
_IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Welcome:
    """The driver's first word to a data worker.

    Attributes:
        path: its ``sys.path``, where it is on this machine; else empty.
    """

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Meet:
    """Where rank 0's store is."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the rank."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the rank; none is to start any more."""


@dataclass(frozen=True, slots=True)
class ImportAhead:
    """Import what the next work will need, while the rank trains."""

    modules: tuple[str, ...]


def work(home: Home, map_: str, place: int) -> None:
    """The task of a data worker: items of one map, until there are no more."""
    connection = call(home, map_, place, os.getpid())
    # The driver hung up: the map is over.
    with connection, suppress(*GONE):
        welcome: Welcome = connection.recv()
        sys.path.extend(folder for folder in welcome.path if folder not in sys.path)
        work_through(connection, on_gone=lambda: None, idle_s=_IDLE_S)


def hold_rank(home: Home, gang: str, place: int) -> None:
    """The task of a rank: starts its process, and passes on what it and the driver say."""
    connection = call(home, gang, place, os.getpid())
    with connection, suppress(*GONE):
        order: on_worker.RankOrder = connection.recv()
        is_gone = threading.Event()
        obeying = threading.Thread(target=_obey, args=(connection, gang, is_gone), daemon=True)
        obeying.start()

        def emit(lines: Lines) -> None:
            try:
                connection.send(Heard(order.rank, lines))
            except GONE:
                is_gone.set()

        end = on_worker.run_rank(order, emit, wanted=lambda: not is_gone.is_set())
        with suppress(*GONE):
            connection.send(Ended(order.rank, end))
        obeying.join()  # until the driver has hung up: nobody reads a closed connection


def _obey(connection: Connection, gang: str, is_gone: threading.Event) -> None:
    """Do what the driver says until it hangs up, which ends the rank."""
    while True:
        try:
            match connection.recv():
                case Meet(host, port):
                    on_worker.meet(gang, host, port)
                case Terminate():
                    on_worker.terminate(gang)
                case Kill():
                    on_worker.kill(gang)
                case ImportAhead(modules):
                    on_worker.import_ahead(modules)
        except GONE:
            is_gone.set()
            on_worker.kill(gang)
            return


def warm(threads: int, modules: tuple[str, ...], place: int) -> None:
    """Begin to import what ranks on this worker will need."""
    on_worker.warm(threads, modules)
