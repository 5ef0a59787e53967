"""Engine local: processes on this machine, started by the driver itself."""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from ddlflow.engines import GangJob, GangResult, Item, OnGangEvent, OnItem, Result, ignore
from ddlflow.engines.environment import rank_environment
from ddlflow.engines.exporting import TableExport, TableOrder, not_here
from ddlflow.engines.fork_owner import ForkServers, Offer
from ddlflow.engines.gang import Ended, Heard, Inbox, watch_gang
from ddlflow.engines.mapping import ITEMS_PER_SLOT, in_order
from ddlflow.engines.pool import ProcessPool, Worker
from ddlflow.engines.rank_process import SECRET_BYTES, Lines, RankProcess
from ddlflow.errors import EngineError

_HOST = "127.0.0.1"


class LocalEngine:
    """Data work in a pool of processes, ranks as children of the driver."""

    name = "local"

    def __init__(self, *, slots: int, threads: int) -> None:
        self.slots = slots
        self._threads = threads
        self._idle: list[Worker] = []  # kept from one map to the next
        self._servers = ForkServers()
        self._warmed: tuple[str, ...] = ()
        self._pools: set[ProcessPool] = set()  # of maps that were begun and not closed
        self._gangs: set[_LocalRanks] = set()  # that another thread may close the engine under

    def describe(self) -> str:
        """One line for the user."""
        return f"local, {self.slots} x {self._threads} threads on this machine"

    def available(self) -> int:
        """See `Engine.available`."""
        return self.slots

    def warm(self, threads: int, modules: tuple[str, ...]) -> None:
        """See `Engine.warm`."""
        self._warmed = modules
        self._servers.offer(rank_environment(threads), modules)

    def import_ahead(self, modules: tuple[str, ...]) -> None:
        """See `Engine.import_ahead`. New workers come from the fork server, which has PyTorch."""

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        return [function()] * self.slots

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_event: OnItem = ignore,
    ) -> Iterator[Result]:
        """See `Engine.map`."""
        pool = ProcessPool(self.slots, self._threads, self._idle, self._offer)
        self._pools.add(pool)

        def start(index: int, item: Item) -> None:
            pool.start(index, function, item)

        try:
            yield from in_order(items, self.slots * ITEMS_PER_SLOT, start, pool.finish, on_event)
        finally:
            pool.close()
            self._pools.discard(pool)

    def _offer(self) -> Offer | None:
        """The fork server that data workers may come from, if it has imported all."""
        offer = self._servers.offer(rank_environment(self._threads), self._warmed)
        return offer if offer is not None and offer.is_ready else None

    def export(self, order: TableOrder) -> TableExport:
        """See `Engine.export`."""
        raise not_here(order, self.name)

    def gang(
        self,
        job: GangJob,
        world: int,
        *,
        on_event: OnGangEvent = ignore,
        stop: threading.Event | None = None,
    ) -> GangResult:
        """See `Engine.gang`."""
        if world > self.slots:
            raise EngineError(
                f"{world} ranks were asked for at once, but engine local has {self.slots} "
                f"slots on this machine. Set engine.workers to {world} in the site file, or ask "
                f"for at most {self.slots}."
            )
        if stop is not None and stop.is_set():
            return GangResult(None, None, stopped=True)
        inbox: Inbox = Inbox()
        ranks = _LocalRanks(job, world, inbox, self._servers)
        self._gangs.add(ranks)
        try:
            return watch_gang(job, [_HOST] * world, ranks, inbox, on_event=on_event, stop=stop)
        finally:
            self._gangs.discard(ranks)

    def close(self) -> None:
        """See `Engine.close`."""
        while self._pools:
            self._pools.pop().close()
        while self._idle:
            self._idle.pop().end()
        while self._gangs:
            self._gangs.pop().kill()
        self._servers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _LocalRanks:
    """Ranks that are the driver's own children, each with a thread that watches it."""

    def __init__(self, job: GangJob, world: int, inbox: Inbox, servers: ForkServers) -> None:
        secret = secrets.token_hex(SECRET_BYTES)
        self._processes = [
            RankProcess(job, rank, world, host=_HOST, secret=secret, servers=servers)
            for rank in range(world)
        ]
        self._threads = [
            threading.Thread(target=_watch, args=(rank, process, inbox), daemon=True)
            for rank, process in enumerate(self._processes)
        ]
        for thread in self._threads:
            thread.start()

    def meet(self, store_host: str, store_port: int) -> None:
        for process in self._processes:
            process.meet(store_host, store_port)

    def terminate(self) -> None:
        self._processes[0].terminate()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    def lost(self) -> dict[int, str]:
        return {}  # their only worker is this process


def _watch(rank: int, process: RankProcess, inbox: Inbox) -> None:
    end = process.run(partial(_put, inbox, rank), wanted=lambda: True)
    inbox.put(Ended(rank, end))


def _put(inbox: Inbox, rank: int, lines: Lines) -> None:
    inbox.put(Heard(rank, lines))
