"""Engine spark: data work and gangs in the tasks of a Spark session.

Spark gives processes where the data is, and places a gang's at once (a barrier stage). Each calls
the driver, and all else goes over that line: items and results, what ranks say and are told.
"""

import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from pyspark.sql import SparkSession

from ddlflow.engines import (
    GangJob,
    GangResult,
    Item,
    OnGangEvent,
    OnItem,
    Result,
    ignore,
    spark_worker,
)
from ddlflow.engines.call_home import GONE, Door
from ddlflow.engines.environment import rank_environment
from ddlflow.engines.exporting import TableExport, TableOrder, not_here
from ddlflow.engines.fork_owner import ForkServers
from ddlflow.engines.gang import Inbox, watch_gang
from ddlflow.engines.mapping import ITEMS_PER_SLOT, in_order
from ddlflow.engines.on_worker import RankOrder
from ddlflow.engines.pool_worker import item_of, outcome_of
from ddlflow.engines.rank_process import SECRET_BYTES
from ddlflow.engines.spark_crew import Crew
from ddlflow.engines.spark_jobs import SparkJob, SparkJobs
from ddlflow.engines.spark_ranks import SparkRanks
from ddlflow.engines.spark_session import Opened
from ddlflow.engines.spark_tables import SparkExport
from ddlflow.errors import EngineError


class SparkEngine:
    """Data work as jobs whose tasks take items, ranks as barrier stages."""

    name = "spark"

    def __init__(self, opened: Opened, *, slots: int, may_grow: bool, patience_s: float) -> None:
        """Take over a session, which is closed with the engine if it was opened for it.

        A gang may have ``slots`` workers, or with ``may_grow`` all that are there; lost executors
        have ``patience_s`` to come back.
        """
        self.slots = slots
        self._opened, self._may_grow, self._patience_s = opened, may_grow, patience_s
        self._door = Door(opened.host, opened.bind)
        self._jobs = SparkJobs(opened.spark, self._door)
        self._servers = ForkServers()
        self._ranks: SparkRanks | None = None
        self._beside: list[SparkJob] = []  # jobs that nobody waits for

    @property
    def session(self) -> SparkSession:
        """For Spark's own tables."""
        return self._opened.session()

    def describe(self) -> str:
        """One line for the user."""
        return self._opened.label

    def available(self) -> int:
        """See `Engine.available`."""
        found = self._opened.slots()
        return found if self._may_grow else min(self.slots, found)

    def warm(self, threads: int, modules: tuple[str, ...]) -> None:
        """See `Engine.warm`. Workers on this host share one fork server, the driver's."""
        if self._opened.is_here:
            self._servers.offer(rank_environment(threads), modules)
        else:
            self._begin(partial(spark_worker.warm, threads, modules))

    def import_ahead(self, modules: tuple[str, ...]) -> None:
        """See `Engine.import_ahead`. The workers that wait hold a rank each."""
        if self._ranks is not None:
            self._ranks.import_ahead(modules)

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        if self._opened.is_here:
            return [function()] * self.slots
        return ask_all(self._jobs, function, self.slots, self._patience_s)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_event: OnItem = ignore,
    ) -> Iterator[Result]:
        """See `Engine.map`."""
        path = tuple(filter(None, sys.path)) if self._opened.is_here else ()
        crew = Crew(self._jobs, self.slots, path, self._patience_s)

        def start(index: int, item: Item) -> None:
            crew.start(index, function, item)

        try:
            yield from in_order(items, self.slots * ITEMS_PER_SLOT, start, crew.finish, on_event)
        finally:
            crew.close()

    def export(self, order: TableOrder) -> TableExport:
        """See `Engine.export`."""
        if order.table.engine != self.name:
            raise not_here(order, self.name)
        return SparkExport(self.session, order)

    def gang(
        self,
        job: GangJob,
        world: int,
        *,
        on_event: OnGangEvent = ignore,
        stop: threading.Event | None = None,
    ) -> GangResult:
        """See `Engine.gang`."""
        self._wait_for_slots(world)
        gang = uuid.uuid4().hex
        calls = self._jobs.expect(gang)
        if stop is not None and stop.is_set():
            return GangResult(None, None, stopped=True)
        stage = self._jobs.start(spark_worker.hold_rank, gang, world, is_gang=True)
        try:
            patience_s = max(self._patience_s, job.start_timeout_s)
            holders = self._jobs.gather(stage, calls, patience_s, stop)
            if len(holders) < world:
                return GangResult(None, None, stopped=True)
            hosts = [holder.host for holder in holders]
            orders = self._orders(gang, job, hosts, [holder.pid for holder in holders])
            inbox: Inbox = Inbox()
            self._ranks = SparkRanks(stage, holders, orders, inbox)
            return watch_gang(job, hosts, self._ranks, inbox, on_event=on_event, stop=stop)
        finally:
            self._ranks = None
            self._jobs.no_more(gang)
            stage.end()

    def close(self) -> None:
        """See `Engine.close`."""
        try:
            self._door.close()
            for job in self._beside:
                job.end()
        finally:
            self._servers.close()
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, function: Callable[[int], None]) -> None:
        """Have each worker do something for which nobody waits."""
        self._beside = [job for job in self._beside if not job.is_over]
        self._beside.append(SparkJob(self._opened.spark, function, self.slots, is_gang=True))

    def _orders(
        self, gang: str, job: GangJob, hosts: list[str], pids: list[int]
    ) -> list[RankOrder]:
        secret = secrets.token_hex(SECRET_BYTES)
        environment, offered = None, None
        if self._opened.is_here:
            # Spark's workers have variables of Spark's own; the rank is to have the driver's.
            environment = rank_environment(job.threads, job.env, job.python_path)
            offered = self._servers.offer(environment, job.preload)
        return [
            RankOrder(gang, job, rank, len(hosts), host, pid, offered, secret, environment)
            for rank, (host, pid) in enumerate(zip(hosts, pids, strict=True))
        ]

    def _wait_for_slots(self, world: int) -> None:
        """A gang's workers; executors that were lost have some time to come back."""
        give_up = time.monotonic() + (self._patience_s if world <= self.slots else 0)
        while (found := self.available()) < world:
            if time.monotonic() >= give_up:
                raise EngineError(
                    f"{world} ranks were asked for at once, one a worker, but "
                    f"{self._opened.label} has {found} that ddlflow may use. Set engine.workers to "
                    f"{world} in the site file, start more executors, or ask for fewer ranks."
                )
            time.sleep(0.2)


def ask_all(
    jobs: SparkJobs, function: Callable[[], Result], slots: int, patience_s: float
) -> list[Result]:
    """What a top-level function gives on each of so many workers at once.

    Raises:
        EngineError: they do not start or answer in time.
    """
    work = f"ask-{uuid.uuid4().hex}"
    calls = jobs.expect(work)
    job = jobs.start(spark_worker.work, work, slots, is_gang=True)
    lines = []
    try:
        lines = [call.connection for call in jobs.gather(job, calls, patience_s)]
        for line in lines:
            line.send(spark_worker.Welcome(()))
            line.send_bytes(item_of(_without_argument, function))
        give_up = time.monotonic() + patience_s
        outcomes = []
        for line in lines:
            if not wait([line], max(0.1, give_up - time.monotonic())):
                raise EngineError(
                    f"A Spark worker did not answer within {patience_s:g} s. It may be busy with "
                    "others' work, or hang: look at Spark's page."
                )
            outcomes.append(outcome_of(line.recv_bytes()))
            line.send_bytes(b"")
    except GONE as error:
        raise EngineError("A Spark worker died as it was asked. Run the command again.") from error
    finally:
        jobs.no_more(work)
        for line in lines:
            line.close()
        job.end()
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def _without_argument(function: Callable[[], Result]) -> Result:
    return function()
