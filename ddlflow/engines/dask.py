"""Engine dask: data work and gangs on the workers of a Dask scheduler.

Data work is plain tasks. A rank is a task pinned to one worker that starts the rank's process and
watches it; what the rank says comes back through the scheduler's event topics (in order, batched
by Dask), what the driver says goes out with `Client.run`, which does not wait for task slots.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from distributed import Client, Future, get_worker
from distributed.comm import get_address_host
from distributed.scheduler import KilledWorker

from ddlflow.engines import GangJob, GangResult, Item, OnEvent, Result, ignore, on_worker
from ddlflow.engines.gang import Ended, Heard, Inbox, watch_gang
from ddlflow.engines.mapping import ITEMS_PER_SLOT, Outcome, call, in_order
from ddlflow.engines.rank_process import RankEnd
from ddlflow.errors import EngineError

_REPLY_S = 10.0  # for workers to answer; one that hangs must not hold up the end of a gang
_LOOK_S = 1.0

# What a lost scheduler or worker raises in the client.
_GONE = (OSError, TimeoutError, RuntimeError)


class DaskEngine:
    """Data work and gangs on the workers of one scheduler."""

    name = "dask"

    def __init__(
        self,
        client: Client,
        *,
        label: str,
        slots: int,
        patience_s: float,
        on_close: Callable[[], None],
    ) -> None:
        """Take over a connected client; it is closed with the engine, before ``on_close``.

        A gang may have ``slots`` workers; ones that were lost have ``patience_s`` to come back.
        """
        self.slots = slots
        self._client = client
        self._label = label
        self._patience_s = patience_s
        self._on_close = on_close
        # One topic for all gangs: the scheduler keeps each topic's last events for ever.
        self._topic = f"ddlflow-{uuid.uuid4().hex}"
        self._inboxes: dict[str, Inbox] = {}
        client.subscribe_topic(self._topic, self._receive)

    def describe(self) -> str:
        """One line for the user."""
        return self._label

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_event: OnEvent = ignore,
    ) -> Iterator[Result]:
        """See `Engine.map`."""
        prefix = f"ddlflow-map-{uuid.uuid4().hex}"
        futures: dict[int, Future] = {}
        finished: queue.SimpleQueue[int] = queue.SimpleQueue()

        def start(index: int, item: Item) -> None:
            future = self._client.submit(call, function, item, key=f"{prefix}-{index}", pure=False)
            futures[index] = future
            future.add_done_callback(lambda _: finished.put(index))

        def finish() -> tuple[int, Outcome]:
            index = self._wait_for(finished)
            return index, _outcome(index, futures.pop(index))

        try:
            window = ITEMS_PER_SLOT * max(self.slots, sum(self.workers().values()))
            yield from in_order(items, window, start, finish, on_event)
        finally:
            self.forget(list(futures.values()))

    def gang(
        self,
        job: GangJob,
        world: int,
        *,
        on_event: OnEvent = ignore,
        stop: threading.Event | None = None,
    ) -> GangResult:
        """See `Engine.gang`."""
        addresses = self._choose_workers(world)
        gang = uuid.uuid4().hex
        hosts = [get_address_host(address) for address in addresses]
        inbox = self._inboxes[gang] = Inbox()
        try:
            pids = self.run(on_worker.process_id, addresses)
            if len(pids) < world:
                lost = ", ".join(sorted(set(addresses) - set(pids)))
                raise EngineError(f"{self._label}: workers went away at the start: {lost}.")
            orders = [
                on_worker.RankOrder(gang, job, rank, world, hosts[rank], pids[address])
                for rank, address in enumerate(addresses)
            ]
            futures = [
                self._client.submit(
                    _rank_task,
                    order,
                    self._topic,
                    key=f"ddlflow-gang-{gang}-{order.rank}",
                    workers=[address],
                    allow_other_workers=False,
                    pure=False,
                    retries=0,
                    priority=10,
                )
                for order, address in zip(orders, addresses, strict=True)
            ]
            ranks = _DaskRanks(self, gang, addresses, futures)
            return watch_gang(job, hosts, ranks, inbox, on_event=on_event, stop=stop)
        finally:
            del self._inboxes[gang]

    def run(self, function: Callable[..., Any], addresses: list[str], *args: Any) -> dict[str, Any]:
        """Call a function on workers at once, beside their tasks; replies by address.

        One that cannot be reached is left out. Raises EngineError if one, or the scheduler, hangs.
        """
        return self._ask(self._client.run, function, *args, workers=addresses, on_error="ignore")

    def workers(self) -> dict[str, int]:
        """The workers there are now, as threads by address. Raises EngineError as `run` does."""
        return self._ask(self._client.sync, self._client.scheduler.ncores)

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
        try:
            replies: dict[str, Any] = method(*args, **options, callback_timeout=_REPLY_S)
        except _GONE as error:
            text = (
                f"{self._label}: the scheduler does not answer ({one_line(error)}). Is it running?"
            )
            raise EngineError(text) from error
        return replies

    def forget(self, futures: list[Future]) -> None:
        """Cancel tasks; those that run go on to their end, which nobody waits for."""
        with suppress(*_GONE):
            self._client.cancel(futures, force=True)

    def close(self) -> None:
        """See `Engine.close`."""
        self._client.close()
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

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        """A message of a rank's task; runs in the client's own thread."""
        message = event[1]
        inbox = self._inboxes.get(message["gang"])
        if inbox is None:
            return  # the last words of a gang that is over
        if "end" in message:
            inbox.put(Ended(message["rank"], RankEnd(**message["end"])))
        else:
            inbox.put(Heard(message["rank"], message["lines"]))

    def _choose_workers(self, world: int) -> list[str]:
        """The workers of a gang; one that was lost has some time to come back."""
        if world <= self.slots:
            give_up = time.monotonic() + self._patience_s
            while len(present := self.workers()) < world and time.monotonic() < give_up:
                time.sleep(0.1)
            if len(present) >= world:
                return sorted(present)[:world]
        else:
            present = self.workers()
        raise EngineError(
            f"{world} ranks were asked for at once, but {self._label} has {len(present)} workers "
            f"({', '.join(sorted(present)) or 'none'}) of which {min(self.slots, len(present))} "
            f"may be used, and each takes one rank. Set engine.workers to {world} in the site "
            f"file (at an address: start more workers), or ask for fewer."
        )

    def _wait_for(self, finished: "queue.SimpleQueue[int]") -> int:
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                return finished.get(timeout=_LOOK_S)
            except queue.Empty:
                if self.workers():
                    give_up = time.monotonic() + self._patience_s
                elif time.monotonic() > give_up:
                    raise EngineError(
                        f"{self._label}: all workers are gone, and none came back within "
                        f"{self._patience_s:g} s. Look at the workers' logs."
                    ) from None


class _DaskRanks:
    """Ranks that are watched by pinned tasks."""

    def __init__(
        self, engine: DaskEngine, gang: str, addresses: list[str], futures: list[Future]
    ) -> None:
        self._engine = engine
        self._gang = gang
        self._addresses = addresses
        self._futures = futures

    def meet(self, store_host: str, store_port: int) -> None:
        self._tell(self._addresses, on_worker.meet, store_host, store_port)

    def terminate(self) -> None:
        self._tell(self._addresses[:1], on_worker.terminate)

    def lost(self) -> dict[int, str]:
        present = self._engine.workers()
        reasons = {}
        for rank, (address, future) in enumerate(zip(self._addresses, self._futures, strict=True)):
            # A pinned task whose worker is gone stays pending for ever: only the list tells.
            if future.status == "error":
                reasons[rank] = f"Dask worker {address}: {one_line(future.exception())}"
            elif address not in present:
                reasons[rank] = f"the Dask worker at {address} is gone; out of memory?"
            elif future.status in ("cancelled", "lost"):
                reasons[rank] = f"Dask worker {address}: its task was {future.status}"
        return reasons

    def kill(self) -> None:
        self._tell(self._addresses, on_worker.kill)
        with suppress(EngineError):
            give_up = time.monotonic() + _REPLY_S
            while self._busy() and time.monotonic() < give_up:
                time.sleep(0.02)
        self._engine.forget(self._futures)

    def _tell(self, addresses: list[str], order: Callable[..., None], *args: Any) -> None:
        # A worker that cannot be told is found by `lost`, and the end of its process ends its rank.
        with suppress(EngineError):
            present = self._engine.workers()
            there = [address for address in addresses if address in present]
            self._engine.run(order, there, self._gang, *args)

    def _busy(self) -> bool:
        present = self._engine.workers()
        return any(
            future.status == "pending" and address in present
            for address, future in zip(self._addresses, self._futures, strict=True)
        )


def _rank_task(order: on_worker.RankOrder, topic: str) -> None:
    """The task of a rank, on its worker."""
    worker = get_worker()

    def send(message: dict[str, Any]) -> None:
        worker.log_event(topic, {"gang": order.gang, "rank": order.rank, **message})

    end = on_worker.run_rank(order, lambda lines: send({"lines": lines}))
    if end is not None:
        send({"end": asdict(end)})


def _outcome(index: int, future: Future) -> Outcome:
    """What became of an item, where Dask itself may have failed."""
    try:
        outcome: Outcome = future.result()
    except KilledWorker as error:
        return Outcome(
            error=EngineError(
                f"Item {index} was on {error.allowed_failures + 1} workers that died, the last one "
                f"{error.last_worker.address}; out of memory? Look at that item, or give the "
                "machine fewer workers (engine.workers)."
            )
        )
    except Exception as error:
        # Whatever the function raised is an outcome; so this is Dask: pickling, a cancelled task.
        return Outcome(error=EngineError(f"Item {index} was lost by Dask: {one_line(error)}"))
    return outcome


def one_line(error: BaseException) -> str:
    """An exception in a few words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
