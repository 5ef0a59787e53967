"""The ranks that run on this worker of a cluster, by gang, so that the driver's orders find them.

Free of any framework: the driver's calls come in on one thread, the rank is watched in another.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ddlflow.engines import GangJob
from ddlflow.engines.environment import rank_environment
from ddlflow.engines.fork_owner import ForkServers, Offer
from ddlflow.engines.importing import begin_import
from ddlflow.engines.rank_process import Lines, RankEnd, RankProcess, not_started
from ddlflow.errors import EngineError


@dataclass(frozen=True, slots=True)
class RankOrder:
    """One rank of one gang, for one worker.

    Attributes:
        gang: the gang's unique name.
        job: what to run.
        rank: which rank.
        world: how many there are.
        host: this worker's address as the cluster sees it.
        pid: the worker process that is meant, not one restarted in its place.
        offered: the driver's fork server, where it is on this host.
        secret: of the gang; in no representation, as Dask logs a task that failed.
        environment: the rank's variables, where they are not this worker's with what the job says.
    """

    gang: str
    job: GangJob
    rank: int
    world: int
    host: str
    pid: int
    offered: Offer | None
    secret: str = field(repr=False)
    environment: dict[str, str] | None = field(repr=False, default=None)


@dataclass(slots=True)
class _GangHere:
    """What this worker knows of a gang. The driver's calls may come before the rank does."""

    process: RankProcess | None = None
    store: tuple[str, int] | None = None
    over: bool = False


_servers = ForkServers()  # of this worker; they end with its process
_gangs: dict[str, _GangHere] = {}
_lock = threading.Lock()


def run_rank(
    order: RankOrder, emit: Callable[[Lines], None], wanted: Callable[[], bool]
) -> RankEnd:
    """Run a rank to its end; not at all if its gang was over before it began.

    Raises:
        EngineError: this is another process than the one that the driver chose.
    """
    if os.getpid() != order.pid:
        raise EngineError("its worker's process died and was started again")
    process = RankProcess(
        order.job,
        order.rank,
        order.world,
        host=order.host,
        secret=order.secret,
        servers=_servers,
        offered=order.offered,
        environment=order.environment,
    )
    with _lock:
        gang = _gangs.setdefault(order.gang, _GangHere())
        if gang.over:
            return not_started()
        gang.process = process
        if gang.store is not None:
            process.meet(*gang.store)
    return process.run(emit, wanted)


def meet(gang: str, store_host: str, store_port: int) -> None:
    """Tell the gang's rank on this worker where the store is, now or once it is there."""
    with _lock:
        here = _gangs.setdefault(gang, _GangHere())
        here.store = (store_host, store_port)
        if here.process is not None:
            here.process.meet(store_host, store_port)


def terminate(gang: str) -> None:
    """Send SIGTERM to the gang's rank on this worker."""
    with _lock:
        here = _gangs.setdefault(gang, _GangHere())
        if here.process is None:
            here.over = True
        else:
            here.process.terminate()


def kill(gang: str) -> None:
    """Kill the gang's rank on this worker, and let none start any more."""
    with _lock:
        here = _gangs.setdefault(gang, _GangHere())
        here.over = True
        if here.process is not None:
            here.process.kill()
            here.process = None


def warm(threads: int, modules: tuple[str, ...]) -> None:
    """Begin to import what ranks on this worker will need."""
    _servers.offer(rank_environment(threads), modules)


def import_ahead(modules: tuple[str, ...]) -> None:
    """Begin to import what this worker's next work will need."""
    begin_import(modules)


def process_id() -> int:
    """Which process this worker is."""
    return os.getpid()
