"""The workers of one map on Spark: a job whose tasks take items from the driver.

Not a Spark job an item: one costs 0.1 to 0.3 s in the driver alone, an item that goes to a task
which is there already less than a millisecond.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from ddlflow.engines.call_home import GONE, Caller
from ddlflow.engines.mapping import RETRIES, ItemOutcome
from ddlflow.engines.pool import PoolItem
from ddlflow.engines.pool_worker import item_of, outcome_of
from ddlflow.engines.spark_jobs import SparkJob, SparkJobs
from ddlflow.engines.spark_worker import Welcome, work
from ddlflow.errors import EngineError

_AHEAD = 2  # items sent to a worker: the one at work and the next
_LOOK_S = 0.02  # for workers that call, where there is one to wait for
_SLOWLY_S = 0.5  # where all are there


@dataclass(slots=True)
class _Worker:
    """A worker that called, and the items that it has, the one at work first."""

    call: Caller
    items: deque[PoolItem] = field(default_factory=deque)


class Crew:
    """The items of one map over workers in Spark tasks. Replaces workers that die or leave."""

    def __init__(
        self, jobs: SparkJobs, slots: int, path: tuple[str, ...], patience_s: float
    ) -> None:
        """Make one without workers.

        Args:
            jobs: starts them.
            slots: workers at once.
            path: the driver's ``sys.path``, where they are on this machine.
            patience_s: how long to wait for the first worker.
        """
        self._jobs, self._slots, self._path, self._patience_s = jobs, slots, path, patience_s
        self._work = f"map-{uuid.uuid4().hex}"
        self._calls = jobs.expect(self._work)
        self._running: list[SparkJob] = []
        self._num_left = 0  # tasks of these jobs that ended, as they had nothing to do
        self._strikes = 0  # jobs that failed in a row, without an item done
        self._members: list[_Worker] = []
        self._waiting: deque[PoolItem] = deque()
        self._ready: deque[tuple[int, ItemOutcome]] = deque()
        self._seen = time.monotonic()  # when there was a worker, or nothing to do

    def start(self, index: int, function: Callable[[Any], Any], item: Any) -> None:
        """Hand in an item."""
        self._waiting.append(PoolItem(index, item_of(function, item)))
        self._give()

    def finish(self) -> tuple[int, ItemOutcome]:
        """Wait for any item and return its index and outcome.

        Raises:
            EngineError: no worker comes, or they fail before any item.
        """
        if not self._members:
            self._seen = time.monotonic()
        while not self._ready:
            self._meet()
            self._call_for_more()
            self._give()
            if self._members:
                self._seen = time.monotonic()
                is_full = len(self._members) >= self._slots
                wait_s = _SLOWLY_S if is_full or not self._waiting else _LOOK_S
                by_connection = {member.call.connection: member for member in self._members}
                for connection in wait(list(by_connection), wait_s):
                    self._hear(by_connection[connection])  # type: ignore[index]
            elif time.monotonic() - self._seen > self._patience_s:
                raise EngineError(
                    f"Spark gave no core to data work within {self._patience_s:g} s "
                    "(engine.start_timeout_s). Executors may be gone, or busy with other jobs: "
                    "look at Spark's page."
                )
            else:
                time.sleep(_LOOK_S)
        return self._ready.popleft()

    def close(self) -> None:
        """Hang up; a worker ends after the item that it is at."""
        self._jobs.no_more(self._work)
        for member in self._members:
            with suppress(*GONE):
                if not member.items:
                    member.call.connection.send_bytes(b"")
            member.call.connection.close()
        self._members.clear()
        for job in self._running:
            job.end()

    def _call_for_more(self) -> None:
        """Start a job for the items that no task was asked for."""
        for job in [job for job in self._running if job.is_over]:
            self._running.remove(job)
            if job.error is not None:
                self._strikes += 1
                if self._strikes > RETRIES and self._waiting:
                    raise job.error
        at_work = sum(len(member.items) for member in self._members)
        wanted = min(self._slots, len(self._waiting) + at_work)
        self._num_left = self._num_left if self._running else 0
        # A task whose worker died counts on: Spark tries it again.
        asked = sum(job.tasks for job in self._running) - self._num_left
        if self._waiting and (asked < wanted or (not self._members and not self._running)):
            tasks = max(1, wanted - asked)
            self._running.append(self._jobs.start(work, self._work, tasks, is_gang=False))

    def _meet(self) -> None:
        while not self._calls.empty():
            member = _Worker(self._calls.get())
            with suppress(*GONE):  # one that is gone again is found by `_hear`
                member.call.connection.send(Welcome(self._path))
            self._members.append(member)

    def _give(self) -> None:
        for ahead in range(_AHEAD):
            for member in self._members:
                if self._waiting and len(member.items) == ahead:
                    item = self._waiting.popleft()
                    member.items.append(item)
                    with suppress(*GONE):
                        member.call.connection.send_bytes(item.payload)

    def _hear(self, member: _Worker) -> None:
        try:
            said = member.call.connection.recv_bytes()
        except GONE:
            self._leave(member, is_dead=True)
            return
        if not said:  # it waited long
            self._num_left += 1
            self._leave(member, is_dead=False)
            return
        self._strikes = 0
        self._ready.append((member.items.popleft().index, outcome_of(said)))

    def _leave(self, member: _Worker, *, is_dead: bool) -> None:
        """Take a worker's items back; the one that a dead one worked on has one try fewer."""
        self._members.remove(member)
        member.call.connection.close()
        if is_dead and member.items:
            first = member.items[0]
            first.deaths += 1
            if first.deaths > RETRIES:
                member.items.popleft()
                call = member.call
                text = (
                    f"Item {first.index} ended {first.deaths} Spark workers, the last one on "
                    f"{call.machine} (process {call.pid}); out of memory? Look at that item, or "
                    "give executors more (spark.executor.memoryOverhead in engine.conf)."
                )
                self._ready.append((first.index, ItemOutcome(error=EngineError(text))))
        self._waiting.extendleft(reversed(member.items))
