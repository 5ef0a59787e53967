"""Spark jobs whose tasks are workers of ours: they call the driver and do what it says.

Where Spark's own driver is ours they go by its context: the first job of a session takes 5 seconds
of CPU time more, for Spark SQL, which we do not need. Spark Connect has nothing but that.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pyspark import SparkContext
from pyspark.sql import SparkSession

from ddlflow.engines.call_home import Caller, Calls, Door, Home
from ddlflow.engines.spark_errors import reason_of
from ddlflow.errors import EngineError

Spark = SparkContext | SparkSession  # what runs jobs: a session over Connect has no context

_LEAVE_S = 2.0  # for tasks to end by themselves; one that is cancelled takes its imports along
_CANCEL_S = 10.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class _Task:
    """What Spark calls in each task, with its number; importable by name, so it travels as one."""

    function: Callable[[int], None]

    def __call__(self, places: Iterable[int]) -> Iterator[None]:
        for place in places:
            self.function(place)
        yield from ()


@dataclass(frozen=True, slots=True)
class _ArrowTask:
    """The same over Connect."""

    task: _Task

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            list(self.task(batch.column(0).to_pylist()))
        yield from ()


class SparkJob:
    """A job that runs in a thread of its own."""

    def __init__(
        self, spark: Spark, function: Callable[[int], None], tasks: int, *, is_gang: bool
    ) -> None:
        """Start it.

        Args:
            spark: a context, or a session over Connect.
            function: called once in each task, with the task's number; importable by name.
            tasks: how many.
            is_gang: whether all have to start at once (a barrier stage).
        """
        self._spark = spark
        self._tag = f"ddlflow-{uuid.uuid4().hex}"
        self.tasks = tasks
        self.error: EngineError | None = None
        self._thread = threading.Thread(
            target=self._run, args=(_Task(function), is_gang), name="ddlflow-spark", daemon=True
        )
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether no task of it runs any more."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """Wait for tasks that have nothing more to do, and cancel what stays."""
        self._thread.join(_LEAVE_S)
        if not self.is_over:
            with contextlib.suppress(Exception):  # Spark itself may be gone
                if isinstance(self._spark, SparkContext):
                    self._spark.cancelJobsWithTag(self._tag)
                else:
                    self._spark.interruptTag(self._tag)
            self._thread.join(_CANCEL_S)

    def _run(self, task: _Task, is_gang: bool) -> None:
        try:
            if isinstance(self._spark, SparkContext):
                self._spark.addJobTag(self._tag)
                places = self._spark.parallelize(range(self.tasks), self.tasks)
                (places.barrier() if is_gang else places).mapPartitions(task).collect()
            else:
                self._spark.addTag(self._tag)
                rows = self._spark.range(0, self.tasks, 1, self.tasks)
                rows.mapInArrow(_ArrowTask(task), "nothing long", barrier=is_gang).collect()
        except Exception as error:  # of Spark, Py4J or gRPC
            self.error = EngineError(reason_of(error))
            self.error.__cause__ = error


class SparkJobs:
    """Starts jobs whose tasks call the driver."""

    def __init__(self, spark: Spark, door: Door) -> None:
        self._spark = spark
        self._door = door

    def start(
        self, function: Callable[[Home, str, int], None], work: str, tasks: int, *, is_gang: bool
    ) -> SparkJob:
        """Start a job; its tasks call by the name of the work (`Door.expect`)."""
        whole = partial(function, self._door.home, work)
        return SparkJob(self._spark, whole, tasks, is_gang=is_gang)

    def expect(self, work: str) -> Calls:
        """See `Door.expect`."""
        return self._door.expect(work)

    def no_more(self, work: str) -> None:
        """See `Door.no_more`."""
        self._door.no_more(work)

    def gather(
        self,
        job: SparkJob,
        calls: Calls,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> list[Caller]:
        """The calls of all tasks of a barrier job, by place; fewer once ``stop`` is set.

        Raises:
            EngineError: it failed, or its tasks were not placed in time.
        """
        met: dict[int, Caller] = {}
        give_up = time.monotonic() + timeout_s
        while len(met) < job.tasks and not (stop is not None and stop.is_set()):
            # A barrier stage that lost a task is started again as a whole, by Spark.
            while not calls.empty():
                call = calls.get()
                if call.place in met:
                    met[call.place].connection.close()
                met[call.place] = call
            if len(met) < job.tasks:
                if job.is_over:
                    raise job.error or EngineError("Spark's barrier job ended before it began.")
                if time.monotonic() > give_up:
                    raise EngineError(
                        f"{job.tasks} ranks were asked for at once, and Spark had no room for all "
                        f"of them within {timeout_s:g} s (engine.start_timeout_s). Other jobs may "
                        "hold its cores: wait for them, or set engine.workers lower."
                    )
                time.sleep(_LOOK_S / 5)
        return [met[place] for place in sorted(met)]
