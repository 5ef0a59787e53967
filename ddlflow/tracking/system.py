"""How busy this machine is while a run lasts, under MLflow's own names (``system/...``).

MLflow's readings are used, not its thread: that one ends at the first request that fails, and the
spool outlives outages.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ddlflow.tracking.run import Run
from ddlflow.tracking.spool import now_ms


@contextmanager
def system_metrics(run: Run, every_s: float = 10.0) -> Iterator[None]:
    """Log processor, memory, disk, network and (with pynvml) GPU use every ``every_s`` seconds.

    A metric's step is the number of seconds since the run was first opened.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(run, every_s, ended), name="ddlflow-system-metrics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(run: Run, every_s: float, ended: threading.Event) -> None:
    monitors = _monitors()
    while not ended.wait(every_s):
        values: dict[str, float] = {}
        for monitor in monitors:
            try:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            except Exception as error:  # a counter this machine lacks ends no training
                logging.getLogger("ddlflow").debug("no %s: %s", type(monitor).__name__, error)
        step = (now_ms() - run.started_ms) // 1000
        run.log_metrics({f"system/{name}": value for name, value in values.items()}, step)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    for make in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(make())
        except Exception as error:  # no GPU, no pynvml, no network counters
            logging.getLogger("ddlflow").debug("no %s: %s", make.__name__, error)
    return monitors
