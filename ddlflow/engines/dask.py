"""Engine dask: data work and gangs on the workers of a Dask scheduler."""

import queue
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from distributed import Client, Future
from distributed.comm import get_address_host
from distributed.scheduler import KilledWorker

from ddlflow.engines import (
    GangJob,
    GangResult,
    Item,
    OnGangEvent,
    OnItem,
    Result,
    ignore,
    on_worker,
)
from ddlflow.engines.dask_ranks import Cluster, DaskRanks, from_topic, one_line
from ddlflow.engines.environment import rank_environment
from ddlflow.engines.exporting import TableExport, TableOrder, not_here
from ddlflow.engines.fork_owner import ForkServers
from ddlflow.engines.gang import Inbox, watch_gang
from ddlflow.engines.mapping import ITEMS_PER_SLOT, ItemOutcome, call, in_order
from ddlflow.engines.rank_process import SECRET_BYTES
from ddlflow.errors import EngineError
from ddlflow.rank_protocol import JsonObject

_LOOK_S = 1.0


class DaskEngine:
    """Data work as plain tasks, ranks by pinned ones."""

    name = "dask"

    def __init__(
        self,
        client: Client,
        *,
        label: str,
        dashboard: str,
        slots: int,
        may_grow: bool = False,
        is_here: bool = False,
        patience_s: float,
        on_close: Callable[[], None],
    ) -> None:
        """Take over a connected client; it is closed with the engine, before ``on_close``.

        A gang may have ``slots`` workers, or with ``may_grow`` all that are there; ones that were
        lost have ``patience_s`` to come back. ``is_here`` says that all are on this machine.
        """
        self.slots = slots
        self._may_grow, self._is_here = may_grow, is_here
        self._client = client
        self._cluster = Cluster(client, label)
        self._dashboard = dashboard
        self._patience_s = patience_s
        self._on_close = on_close
        # One topic for all gangs: the scheduler keeps each topic's last events for ever.
        self._topic = f"ddlflow-{uuid.uuid4().hex}"
        self._inboxes: dict[str, Inbox] = {}
        self._servers = ForkServers()
        client.subscribe_topic(self._topic, self._receive)

    def describe(self) -> str:
        """One line for the user."""
        return self._cluster.label + (f", dashboard {self._dashboard}" if self._dashboard else "")

    def available(self) -> int:
        """See `Engine.available`."""
        return len(self._answering(self.slots))

    def warm(self, threads: int, modules: tuple[str, ...]) -> None:
        """See `Engine.warm`. Workers on this host share one fork server, the driver's."""
        if self._is_here:
            self._servers.offer(rank_environment(threads), modules)
        else:
            self._cluster.run(on_worker.warm, self._cluster.workers(), threads, modules)

    def import_ahead(self, modules: tuple[str, ...]) -> None:
        """See `Engine.import_ahead`."""
        self._cluster.run(on_worker.import_ahead, self._cluster.workers(), modules)

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        if self._is_here:
            return [function()] * self.slots
        # Not `Client.run`: what takes long there holds up the worker's signs of life.
        futures = [
            self._client.submit(
                call,
                _without_argument,
                function,
                key=f"ddlflow-ask-{uuid.uuid4().hex}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                priority=10,
            )
            for address in self._cluster.workers()
        ]
        give_up = time.monotonic() + self._patience_s
        try:
            for future in futures:
                future.exception(timeout=max(0.1, give_up - time.monotonic()))  # waits for its end
        except TimeoutError:
            self._cluster.forget(futures)
            raise EngineError(
                f"{self._cluster.label}: a worker did not answer within {self._patience_s:g} s. It "
                "may be busy with others' work, or hang: look at the workers' logs."
            ) from None
        outcomes = [_outcome(index, future) for index, future in enumerate(futures)]
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_event: OnItem = ignore,
    ) -> Iterator[Result]:
        """See `Engine.map`."""
        prefix = f"ddlflow-map-{uuid.uuid4().hex}"
        futures: dict[int, Future] = {}
        finished: queue.SimpleQueue[int] = queue.SimpleQueue()

        def start(index: int, item: Item) -> None:
            future = self._client.submit(call, function, item, key=f"{prefix}-{index}", pure=False)
            futures[index] = future
            future.add_done_callback(lambda _: finished.put(index))

        def finish() -> tuple[int, ItemOutcome]:
            index = self._wait_for(finished)
            return index, _outcome(index, futures.pop(index))

        try:
            num_threads = sum(self._cluster.workers().values())
            window = ITEMS_PER_SLOT * max(self.slots, num_threads)
            yield from in_order(items, window, start, finish, on_event)
        finally:
            self._cluster.forget(list(futures.values()))

    def export(self, order: TableOrder) -> TableExport:
        """See `Engine.export`."""
        if order.table.engine != self.name:
            raise not_here(order, self.name)
        from ddlflow.engines.dask_tables import DaskExport  # with dask.delayed

        return DaskExport(self._client, order)

    def gang(
        self,
        job: GangJob,
        world: int,
        *,
        on_event: OnGangEvent = ignore,
        stop: threading.Event | None = None,
    ) -> GangResult:
        """See `Engine.gang`."""
        pids = self._choose_workers(world)
        if stop is not None and stop.is_set():
            return GangResult(None, None, stopped=True)
        hosts = [get_address_host(address) for address in pids]
        gang = uuid.uuid4().hex
        secret = secrets.token_hex(SECRET_BYTES)
        offered = None
        if self._is_here:
            environment = rank_environment(job.threads, job.env, job.python_path)
            offered = self._servers.offer(environment, job.preload)
        orders = {
            address: on_worker.RankOrder(gang, job, rank, world, hosts[rank], pid, offered, secret)
            for rank, (address, pid) in enumerate(pids.items())
        }
        inbox = self._inboxes[gang] = Inbox()
        try:
            ranks = DaskRanks(self._cluster, self._topic, orders)
            return watch_gang(job, hosts, ranks, inbox, on_event=on_event, stop=stop)
        finally:
            del self._inboxes[gang]

    def close(self) -> None:
        """See `Engine.close`."""
        try:
            self._client.close()
        finally:
            self._servers.close()
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, event: tuple[float, JsonObject]) -> None:
        """A message of a rank's task; runs in the client's own thread."""
        gang, message = from_topic(event[1])
        inbox = self._inboxes.get(gang)
        if inbox is not None:  # else these are the last words of a gang that is over
            inbox.put(message)

    def _answering(self, enough: int) -> dict[str, int]:
        """The workers that answer, by address, each with its process; ``enough`` will do."""
        return self._cluster.run(on_worker.process_id, self._cluster.workers(), enough=enough)

    def _choose_workers(self, world: int) -> dict[str, int]:
        """A gang's workers, as `_answering`; one that was lost has some time to come back."""
        give_up = time.monotonic() + (self._patience_s if world <= self.slots else 0)
        while len(present := self._answering(world)) < world:
            if time.monotonic() >= give_up:
                break
            time.sleep(0.1)
        usable = len(present) if self._may_grow else min(self.slots, len(present))
        if world <= usable:
            return dict(list(present.items())[:world])
        raise EngineError(
            f"{world} ranks were asked for at once, one a worker, but {self._cluster.label} has "
            f"{len(present)} workers ({', '.join(present) or 'none'}) of which ddlflow may use "
            f"{usable}. Set engine.workers to {world} in the site file (at "
            "an address: start more workers), or ask for fewer ranks."
        )

    def _wait_for(self, finished: "queue.SimpleQueue[int]") -> int:
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                return finished.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._cluster.workers():
                    give_up = time.monotonic() + self._patience_s
                elif time.monotonic() > give_up:
                    raise EngineError(
                        f"{self._cluster.label}: all workers are gone, and none came back within "
                        f"{self._patience_s:g} s. Look at the workers' logs."
                    ) from None


def _without_argument(function: Callable[[], Result]) -> Result:
    return function()


def _outcome(index: int, future: Future) -> ItemOutcome:
    """What became of an item, where Dask itself may have failed."""
    try:
        outcome: ItemOutcome = future.result()
    except KilledWorker as error:
        return ItemOutcome(
            error=EngineError(
                f"Item {index} was on {error.allowed_failures + 1} workers that died, the last one "
                f"{error.last_worker.address}; out of memory? Look at that item, or give the "
                "machine fewer workers (engine.workers)."
            )
        )
    except Exception as error:
        # Whatever the function raised is an outcome; so this is Dask: pickling, a lost scheduler.
        return ItemOutcome(error=EngineError(f"Item {index} was lost by Dask: {one_line(error)}"))
    return outcome
