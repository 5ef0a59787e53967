"""Ranks on Dask workers: a rank is watched by a task that is pinned to one worker.

What the rank says comes back through the scheduler's event topics (in order, batched by Dask);
what the driver says goes out with `Client.run`, which does not wait for task slots.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, overload

from distributed import Client, Future, Status, get_worker

from ddlflow.engines import on_worker
from ddlflow.engines.gang import Ended, Heard
from ddlflow.engines.rank_process import RankEnd
from ddlflow.errors import EngineError
from ddlflow.rank_protocol import JsonObject

Reply = TypeVar("Reply")

_REPLY_S = 10.0  # for the scheduler to answer
_ANSWER_S = 2.0  # for a worker; one that is stopped or cut off must not hold up the others
_MOMENT_S = 0.2  # for the slower ones, once as many as are needed have answered
_AGAIN_S = 0.5  # for one that did not answer the last time
_WORKING = (Status.running, Status.paused, Status.closing_gracefully)
# What the client raises when the scheduler or a worker is gone or hangs.
_GONE = (OSError, TimeoutError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A client, asked with time limits; `label` names the cluster to the user."""

    client: Client
    label: str
    _silent: set[str] = field(default_factory=set)  # did not answer the last time

    @overload
    def run(
        self,
        function: Callable[..., Reply],
        addresses: Iterable[str],
        *args: Any,
        enough: int | None = None,
    ) -> dict[str, Reply]: ...

    @overload
    def run(
        self,
        function: Callable[..., Reply],
        addresses: Iterable[str],
        *args: Any,
        on_error: Literal["return"],
    ) -> dict[str, Reply | Exception]: ...

    def run(
        self,
        function: Callable[..., Reply],
        addresses: Iterable[str],
        *args: Any,
        on_error: Literal["ignore", "return"] = "ignore",
        enough: int | None = None,
    ) -> dict[str, Reply] | dict[str, Reply | Exception]:
        """Call a function on workers at once, beside their tasks; replies by address.

        One that cannot be reached, or does not answer in time, is left out: its process may be
        stopped or its network cut, and Dask itself drops such a worker after minutes only. Once
        ``enough`` have answered, the others have a moment. What the function raises is the reply of
        its worker with ``on_error="return"``; else that worker is left out too.
        """

        async def ask(address: str) -> dict[str, Reply]:
            reply = self.client.run(function, *args, workers=[address], on_error=on_error)
            limit_s = _AGAIN_S if address in self._silent else _ANSWER_S
            try:
                said: dict[str, Reply] = await asyncio.wait_for(reply, limit_s)
            except _GONE:
                self._silent.add(address)
                return {}
            self._silent.discard(address)
            return said

        async def ask_all() -> dict[str, Reply]:
            waiting = {asyncio.ensure_future(ask(address)) for address in addresses}
            replies: dict[str, Reply] = {}
            limit_s = None
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    replies |= task.result()
                if limit_s is not None and not done:
                    break
                if enough is not None and len(replies) >= enough:
                    limit_s = _MOMENT_S
            for task in waiting:
                task.cancel()
            return dict(sorted(replies.items()))

        replies: dict[str, Reply] = self._ask(self.client.sync, ask_all)
        return replies

    def workers(self) -> dict[str, int]:
        """The workers there are now, as threads by address. Raises EngineError as `run` does."""
        threads: dict[str, int] = self._ask(self.client.sync, self.client.scheduler.ncores)
        return threads

    def forget(self, futures: list[Future]) -> None:
        """Cancel tasks; those of data work that run go on to their end, for nobody."""
        with suppress(*_GONE):
            self.client.cancel(futures, force=True)

    def _ask(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args, callback_timeout=_REPLY_S)
        except _GONE as error:
            text = f"{self.label}: no answer from the cluster ({one_line(error)})."
            raise EngineError(text) from error


class DaskRanks:
    """The ranks of one gang; see `ddlflow.engines.gang.GangRanks`."""

    def __init__(
        self, cluster: Cluster, topic: str, orders: dict[str, on_worker.RankOrder]
    ) -> None:
        """Start them: orders by the worker's address, rank 0 first."""
        self._cluster = cluster
        self._gang = next(iter(orders.values())).gang
        self._addresses = list(orders)
        self._futures = [
            cluster.client.submit(
                _run_rank,
                order,
                topic,
                key=f"ddlflow-gang-{order.gang}-{order.rank}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
                priority=10,
            )
            for address, order in orders.items()
        ]

    def meet(self, store_host: str, store_port: int) -> None:
        """Tell every rank where the store is."""
        self._tell(self._addresses, on_worker.meet, store_host, store_port)

    def terminate(self) -> None:
        """Send SIGTERM to rank 0."""
        self._tell(self._addresses[:1], on_worker.terminate)

    def kill(self) -> None:
        """Kill every rank, and wait until their workers are free again."""
        reached = self._tell(self._addresses, on_worker.kill)
        with suppress(EngineError):
            give_up = time.monotonic() + _REPLY_S
            while self._busy(reached) and time.monotonic() < give_up:
                time.sleep(0.02)
        self._cluster.forget(self._futures)

    def lost(self) -> dict[int, str]:
        """Ranks that will not be heard of again, each with the reason."""
        present = self._cluster.workers()
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

    def _tell(self, addresses: list[str], order: Callable[..., None], *args: Any) -> set[str]:
        """Gives workers an order; returns those that took it."""
        # A worker that cannot be told is found by `lost`, and the end of its process ends its rank.
        with suppress(EngineError):
            present = self._cluster.workers()
            there = [address for address in addresses if address in present]
            return set(self._cluster.run(order, there, self._gang, *args))
        return set()

    def _busy(self, addresses: set[str]) -> bool:
        present = self._cluster.workers()
        return any(
            future.status == "pending" and address in addresses and address in present
            for address, future in zip(self._addresses, self._futures, strict=True)
        )


def _run_rank(order: on_worker.RankOrder, topic: str) -> None:
    """The task of a rank, on its worker."""
    worker = get_worker()
    key = worker.get_current_task()

    def send(message: Heard | Ended) -> None:
        worker.log_event(topic, for_topic(order.gang, message))

    def wanted() -> bool:
        # No longer when the scheduler is lost or the task was cancelled, as it is by Dask when
        # the driver is gone. Dask interrupts no running task: the rank would go on for ever.
        task = worker.state.tasks.get(key)
        return worker.status in _WORKING and task is not None and task.state != "cancelled"

    end = on_worker.run_rank(order, lambda lines: send(Heard(order.rank, lines)), wanted)
    send(Ended(order.rank, end))


def for_topic(gang: str, message: Heard | Ended) -> JsonObject:
    """What a topic carries of a gang: plain values alone."""
    return {"gang": gang, **asdict(message)}


def from_topic(values: JsonObject) -> tuple[str, Heard | Ended]:
    """The gang and the message of what `for_topic` gave."""
    if "end" in values:
        return values["gang"], Ended(values["rank"], RankEnd(**values["end"]))
    return values["gang"], Heard(values["rank"], values["lines"])


def one_line(error: BaseException) -> str:
    """An exception in a few words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
