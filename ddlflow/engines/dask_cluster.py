"""Open engine dask: start a LocalCluster."""

import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import dask.config
from distributed import Client, LocalCluster, WorkerPlugin

from ddlflow.engines.dask import DaskEngine
from ddlflow.engines.dask_ranks import one_line
from ddlflow.engines.environment import thread_variables
from ddlflow.engines.mapping import RETRIES
from ddlflow.errors import EngineError

_STUCK_S = 8.0


class _WorkerOfOurs(WorkerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Makes a LocalCluster's worker, also one that was started again, behave as part of us."""

    name = "ddlflow"

    def setup(self, worker: Any) -> None:
        # Ctrl-C reaches the whole foreground group; what then happens is the driver's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Standard output belongs to the command's own answer.
        os.dup2(2, 1)


def start_dask(slots: int, threads: int, timeout_s: float) -> DaskEngine:
    """Start a LocalCluster of workers that do one thing at a time.

    Args:
        slots: how many workers.
        threads: of one rank, and of each worker's data work.
        timeout_s: how long to wait for them.

    Raises:
        EngineError: it did not start.
    """
    has_bokeh = importlib.util.find_spec("bokeh") is not None
    settings = {
        "distributed.scheduler.allowed-failures": RETRIES,
        "distributed.scheduler.worker-saturation": 1.0,  # a lost worker takes few items with it
        "distributed.worker.profile.enabled": False,  # it wakes 100 times a second beside a rank
        "distributed.nanny.pre-spawn-environ": thread_variables(threads),
        # A LocalCluster drops a worker for good that is away this long after it was lost once,
        # even where it was lost again a moment ago; its nanny brings it back.
        "distributed.deploy.lost-worker-timeout": "1 day",
    }
    undo = ExitStack()
    undo.enter_context(dask.config.set(settings))
    undo.callback(_hide_main())
    undo.callback(_keep_environment(thread_variables(threads)))
    try:
        cluster = LocalCluster(
            n_workers=slots,
            threads_per_worker=1,
            processes=True,
            # Files that a task maps into memory would count and ranks would not: a limit would
            # pause or kill the wrong process.
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # None would try 8787, and warn where it is taken
            silence_logs=logging.CRITICAL,
        )
        undo.callback(_close, cluster, list(cluster.workers.values()))
        client = Client(cluster, set_as_default=False)
        client.register_plugin(_WorkerOfOurs())
        client.wait_for_workers(slots, timeout_s)
    except BaseException as error:
        undo.close()
        if isinstance(error, OSError | RuntimeError):
            text = f"A Dask LocalCluster of {slots} workers did not start ({one_line(error)})."
            raise EngineError(
                f"{text} Look at the free memory, or set engine.use: local."
            ) from error
        raise
    return DaskEngine(
        client,
        label=f"dask LocalCluster, {slots} workers x {threads} threads",
        dashboard=client.dashboard_link if has_bokeh else "",
        slots=slots,
        is_here=True,
        patience_s=timeout_s,
        on_close=undo.close,
    )


def _close(cluster: LocalCluster, nannies: list[Any]) -> None:
    """Close a cluster. Its nannies have 4 s for a worker to end; one that waits longer is stuck.

    A nanny whose worker dies while it starts may wait for ever (two waiters read one queue in
    distributed 2026.7: nanny.py, _wait_until_connected); the worker's death sets it free.
    """

    def kill_workers() -> None:
        for nanny in nannies:
            with suppress(ProcessLookupError):
                if nanny.pid is not None:
                    os.kill(nanny.pid, signal.SIGKILL)

    rescue = threading.Timer(_STUCK_S, kill_workers)
    rescue.start()
    try:
        cluster.close()
    finally:
        rescue.cancel()
        rescue.join()


def _keep_environment(names: Iterable[str]) -> Callable[[], None]:
    """A nanny sets its worker's environment variables in its own process, which here is ours."""
    before = {name: os.environ.get(name) for name in names}

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return undo


def _hide_main() -> Callable[[], None]:
    """Keep started workers from importing the user's script; the returned function undoes it.

    Dask starts workers by multiprocessing's spawn, which imports the driver's main module in each.
    A plain script (one without ``if __name__ == "__main__"``) that calls ddlflow would so call it
    again in every worker. Nothing of ours is pickled from a main module.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    return lambda: main.update(hidden)
