"""The cluster framework behind one Protocol: data work is mapped, rank processes run as a gang.

__init__.py      the contract, and `open_engine`
mapping.py       map: results in order, a bounded number under way; on every engine the same
exporting.py     export: what is asked of a table's engine, and what that gives
gang.py          gang: the driver's watch over its ranks, and which failure came first
causes.py        which failure of a gang is the cause of the others
environment.py   the environment variables of ranks and data work
rank_process.py  one rank's process, started and watched by the worker it runs on
fork_owner.py    fork servers: started once in a process, for all its engines
fork_server.py   their program: imports PyTorch once, forks ranks and data workers from there
forked.py        a process that one forked, from outside
pool.py          worker processes of this machine, for the local engine's map
pool_worker.py   what such a process does
local.py         engine local: processes on this machine
on_worker.py     what a cluster's worker knows of the gangs that have a rank on it
dask.py          engine dask: data work and gangs on the workers of a Dask scheduler
dask_ranks.py    its ranks: tasks pinned to workers, what they say and are told
dask_tables.py   its tables, made by a user's function
dask_cluster.py  opens it: a LocalCluster
dask_address.py  opens it: the scheduler at an address
call_home.py     workers that call the driver, where a cluster gives processes alone
spark.py         engine spark: data work and gangs in the tasks of a session
spark_open.py    opens it
spark_needs.py   PySpark and Java: what it needs of this machine
given.py         a session that the user's own code has
spark_session.py the session: our own, at a master, over Connect, or the user's
spark_java.py    the Java process of a session
spark_jobs.py    jobs whose tasks are workers of ours
spark_worker.py  what runs in such a task
spark_crew.py    map: the workers of one map
spark_ranks.py   gang: ranks in the tasks of a barrier stage
spark_tables.py  its tables: planned in the session, written by its executors
spark_table_state.py   what tells that a table is the same
spark_table_errors.py  what Spark says of a table that it cannot read
spark_errors.py  what Spark says when a job fails, in one line
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ddlflow.engines.exporting import TableExport, TableOrder
from ddlflow.rank_protocol import JsonObject, RankEvent
from ddlflow.spec.site import Site

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item of a map finished well.

    Attributes:
        item: its place, from 0.
        of: how many items there are; None where their number is not known.
    """

    item: int
    of: int | None


@dataclass(frozen=True, slots=True)
class GangEvent:
    """What a rank of a gang said.

    Attributes:
        rank: which one.
        host: where it runs, as the other ranks reach it.
        event: any but signs of life.
    """

    rank: int
    host: str
    event: RankEvent


OnItem = Callable[[ItemDone], None]
OnGangEvent = Callable[[GangEvent], None]


def ignore(event: object) -> None:
    """The listener of someone who wants no events."""


@dataclass(frozen=True, slots=True)
class GangJob:
    """What every rank of a gang runs.

    Attributes:
        module: started as ``python -m module --events-fd N``; it speaks `ddlflow.rank_protocol`.
        payload: handed to each rank on standard input.
        threads: of one rank, for OpenMP, MKL and OpenBLAS.
        log_folder: each rank's standard output and error are appended to ``rank-<r>.log`` here.
        env: environment variables on top of the worker's.
        python_path: folders put in front of each rank's ``PYTHONPATH``.
        start_timeout_s: how long every rank has for its first event.
        preload: modules that a fork server imports once for the ranks of all gangs in one
            environment; they must not start threads, use a device or be the user's. None: each
            rank is a fresh interpreter.
        silence_s: how long a rank's beats may stay away before it counts as hung; 0: as long as
            they like. Silence counts from a rank's first beat on. A beat that is ``stuck`` says
            that the rank's own work stands still.
    """

    module: str
    payload: JsonObject
    threads: int
    log_folder: str
    env: dict[str, str]
    python_path: tuple[str, ...]
    start_timeout_s: float
    silence_s: float = 0.0
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """The first cause of a gang's end.

    Attributes:
        rank: whose failure it was.
        host: where that rank ran.
        step: the last step the rank told of, if any.
        kind: the exception's class, or one of ``Killed``, ``Exited``, ``WorkerLost``,
            ``Hung``, ``StartTimeout``, ``BadEvent``.
        message: what happened.
        traceback: the end of the traceback, or of the log where the rank left none.
        log: the path of the rank's log.
    """

    rank: int
    host: str
    step: int | None
    kind: str
    message: str
    traceback: str
    log: str


@dataclass(frozen=True, slots=True)
class GangResult:
    """How a gang ended.

    Attributes:
        values: each rank's result, by rank; None unless every rank gave one.
        failure: the first cause, where a rank failed.
        stopped: the gang was asked to stop (by ``stop``, or a rank by SIGTERM) before it was done.
    """

    values: list[Any] | None
    failure: Failure | None
    stopped: bool


class Engine(Protocol):
    """A cluster framework. A context manager: leaving it closes it."""

    name: str
    slots: int  # ranks that run at once: the number of workers

    def describe(self) -> str:
        """One line for the user: what this engine is and how many workers it has."""

    def available(self) -> int:
        """Ranks that could start at this moment; less than ``slots`` while workers are away."""

    def warm(self, threads: int, modules: tuple[str, ...]) -> None:
        """Begin to import what ranks of that many threads will need; returns at once.

        A gang whose job has them as ``preload`` starts in a fraction of a second then.
        """

    def import_ahead(self, modules: tuple[str, ...]) -> None:
        """Begin to import what the data work after a gang will need; returns at once.

        Its workers wait while their ranks train, and PyTorch takes seconds to import.
        """

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """What a top-level function gives on each worker; where all are on this machine, here.

        Raises:
            EngineError: a worker does not answer.
        """

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_event: OnItem = ignore,
    ) -> Iterator[Result]:
        """Apply a top-level function to each item on the workers; results in order of the items.

        Lazy: a few items a slot are under way at once, so neither many items nor large results
        pile up. An item whose worker dies is tried again, up to three times. Closing the iterator
        cancels the rest.

        Args:
            function: importable by name on the workers.
            items: small picklable values: paths, ranges, specs; never data.
            on_event: called in the caller's thread as each finishes well.

        Raises:
            EngineError: an item's worker died four times, or all workers are gone.
            Exception: what ``function`` raised, with its remote traceback as a note; the first
                in order of items, whatever the workers.
        """

    def export(self, order: TableOrder) -> TableExport:
        """Plan a table of the engine's own framework, which its workers then write.

        Raises:
            InputError: it cannot be read, or is of another framework.
        """

    def gang(
        self,
        job: GangJob,
        world: int,
        *,
        on_event: OnGangEvent = ignore,
        stop: threading.Event | None = None,
    ) -> GangResult:
        """Run ``world`` ranks, one a worker, that start together and fail together.

        Args:
            job: what they run.
            world: how many ranks.
            on_event: called in the caller's thread with each event of a rank.
            stop: once set, rank 0 gets SIGTERM and all have 20 s to end.

        Raises:
            EngineError: fewer slots than ranks (nothing was started), or the cluster is gone.
        """

    def close(self) -> None:
        """End every process that this engine started."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_engine(site: Site, *, slots: int, threads: int) -> Engine:
    """Open the engine that a site names.

    Args:
        site: the site; ``site.engine.workers`` counts only with an address (how many to wait for).
        slots: workers to start; at an address, what is there counts instead.
        threads: of one rank, and of each started worker's data work.

    Raises:
        EngineError: the cluster cannot be reached or started, too few workers came in time, or
            its workers run other versions of Python, Dask or ddlflow; for Spark, no Java or no
            PySpark.
    """
    engine = site.engine
    if engine.use == "local":
        from ddlflow.engines.local import LocalEngine

        return LocalEngine(slots=slots, threads=threads)
    if engine.use == "spark":
        from ddlflow.engines.spark_open import open_spark

        return open_spark(engine, slots=slots, threads=threads)
    if engine.address is None:
        from ddlflow.engines.dask_cluster import start_dask

        return start_dask(slots, threads, engine.start_timeout_s)
    from ddlflow.engines.dask_address import connect_dask

    return connect_dask(engine)
