"""Ranks on Spark: the tasks of one barrier stage hold one each, and each has a line to the driver.

So what a rank says is heard at once, and a worker that dies is known by the end of its line.
"""

import threading
import time
from contextlib import suppress

from ddlflow.engines.call_home import GONE, Caller, hang_up
from ddlflow.engines.gang import Ended, Inbox
from ddlflow.engines.on_worker import RankOrder
from ddlflow.engines.spark_jobs import SparkJob
from ddlflow.engines.spark_worker import ImportAhead, Kill, Meet, Terminate

_KILL_S = 10.0  # for the holders to say that their ranks are dead


class SparkRanks:
    """The ranks of one gang; see `ddlflow.engines.gang.GangRanks`."""

    def __init__(
        self, job: SparkJob, calls: list[Caller], orders: list[RankOrder], inbox: Inbox
    ) -> None:
        """Start them: a call and an order each, by rank."""
        self._job, self._calls, self._inbox = job, calls, inbox
        self._lost: dict[int, str] = {}
        for call, order in zip(calls, orders, strict=True):
            with suppress(*GONE):  # it is lost then, as its line tells
                call.connection.send(order)
        self._threads = [
            threading.Thread(target=self._listen, args=(rank, call), daemon=True)
            for rank, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def meet(self, store_host: str, store_port: int) -> None:
        """Tell every rank where the store is."""
        self._tell(self._calls, Meet(store_host, store_port))

    def terminate(self) -> None:
        """Send SIGTERM to rank 0."""
        self._tell(self._calls[:1], Terminate())

    def import_ahead(self, modules: tuple[str, ...]) -> None:
        """Have the holders, which wait, import what comes after."""
        self._tell(self._calls, ImportAhead(modules))

    def kill(self) -> None:
        """Kill every rank, and wait until its worker is free again."""
        self._tell(self._calls, Kill())
        give_up = time.monotonic() + _KILL_S
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))
        for thread, call in zip(self._threads, self._calls, strict=True):
            hang_up(call.connection)
            thread.join()
            call.connection.close()
        self._job.end()

    def lost(self) -> dict[int, str]:
        """Ranks that will not be heard of again, each with the reason."""
        return dict(self._lost)

    def _tell(self, calls: list[Caller], order: Meet | Terminate | Kill | ImportAhead) -> None:
        for call in calls:
            with suppress(*GONE):
                call.connection.send(order)

    def _listen(self, rank: int, call: Caller) -> None:
        """Pass on what a rank's holder says, until its last word."""
        try:
            while True:
                message = call.connection.recv()
                self._inbox.put(message)
                if isinstance(message, Ended):
                    return
        except GONE:
            self._lost[rank] = (
                f"the Spark worker on {call.machine} (process {call.pid}) is gone; out of memory?"
            )
