"""Open engine dask: start a LocalCluster, or connect to the scheduler at an address."""

import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from ddlflow.engines.dask import DaskEngine
from ddlflow.engines.dask_ranks import Cluster, one_line
from ddlflow.engines.mapping import RETRIES
from ddlflow.engines.rank_process import thread_variables
from ddlflow.errors import EngineError, SpecError
from ddlflow.spec.site import Engine, Tls

_CONNECT_S = 5.0
_STUCK_S = 8.0
_LOOK_S = 0.2
_LOGS = ("distributed", "distributed.client")  # Dask gives each a level of its own
# Code and pickles travel between these; other versions of them fail in ways that are hard to read.
_SAME = ("python", "dask", "distributed", "ddlflow")


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


def connect_dask(engine: Engine, threads: int) -> DaskEngine:
    """Use the workers of a scheduler that runs already.

    Args:
        engine: the site's section, with the scheduler's address; ``workers`` says how many workers
            to wait for and use, and ``auto`` all that are there.
        threads: of one rank.

    Raises:
        SpecError: a file of ``engine.tls`` is not there, or is needed and not named.
        EngineError: see `ddlflow.engines.open_engine`.
    """
    address, timeout_s = str(engine.address), engine.start_timeout_s
    wanted = None if engine.workers == "auto" else engine.workers
    security = _security(engine.tls)
    if address.startswith("tls://") and not _has_certificates(security):
        raise SpecError(
            f"engine.address is {address}, and nothing says by which certificates. Set engine.tls: "
            "{ca: FILE, cert: FILE, key: FILE} in the site file."
        )
    show_log = _hide_log()
    try:
        client = _connect(address, min(_CONNECT_S, timeout_s), security)
    except BaseException:
        show_log()
        raise
    try:
        versions = _wait_for_workers(client, address, wanted, timeout_s)
        num_workers = len(versions)
        problem = version_problem({"client": _versions_here(), **versions})
        if problem is not None:
            raise EngineError(f"The Dask cluster at {address} does not fit: {problem}")
    except BaseException:
        client.close()
        show_log()
        raise
    slots = wanted or num_workers
    return DaskEngine(
        client,
        label=f"dask at {address}, {slots} of {num_workers} workers x {threads} threads",
        dashboard=client.dashboard_link,
        slots=slots,
        may_grow=wanted is None,
        patience_s=timeout_s,
        on_close=show_log,
    )


def version_problem(versions: Mapping[str, Mapping[str, str]]) -> str | None:
    """What keeps the client and the workers from working together, in one line; None if nothing.

    Args:
        versions: by package for each of ``client`` and the workers' addresses.
    """
    ours = versions["client"]
    for address, theirs in versions.items():
        for package in _SAME:
            if theirs[package] != ours[package]:
                return (
                    f"{address} has {package} {theirs[package]}, this side has {package} "
                    f"{ours[package]}. Install the same versions on both."
                )
    return None


def _security(tls: Tls | None) -> Security:
    """What Dask is told; without ``tls`` that is left to Dask's own settings."""
    if tls is None:
        return Security()
    files = {name: Path(value).expanduser() for name, value in tls.model_dump().items()}
    for name, path in files.items():
        if not path.is_file():
            raise SpecError(
                f"engine.tls.{name} is {path}, which is no file here. Name a file in PEM format "
                "in the site file."
            )
    return Security(
        require_encryption=True,
        tls_ca_file=str(files["ca"]),
        tls_client_cert=str(files["cert"]),
        tls_client_key=str(files["key"]),
    )


def _has_certificates(security: Security) -> bool:
    try:
        return security.get_connection_args("client")["ssl_context"] is not None
    except OSError as error:  # ssl's errors are
        raise SpecError(
            f"The files of engine.tls cannot be used ({one_line(error)}). They have to be in PEM "
            "format, and the key that of the certificate."
        ) from None


def _connect(address: str, timeout_s: float, security: Security) -> Client:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # an error below, in one line
            return Client(address, timeout=timeout_s, set_as_default=False, security=security)
    except (OSError, ValueError) as error:
        trust = " or engine.tls to files that it trusts" if address.startswith("tls:") else ""
        raise EngineError(
            f"No Dask scheduler answers at {address} ({one_line(error)}). Start one there with "
            f"`dask scheduler`, or set engine.address to where it is{trust}."
        ) from error


def _wait_for_workers(
    client: Client, address: str, wanted: int | None, timeout_s: float
) -> dict[str, dict[str, str]]:
    """The versions of the workers that answer, by address."""
    cluster = Cluster(client, f"dask at {address}")
    give_up = time.monotonic() + timeout_s
    while True:
        found = cluster.run(_versions_here, cluster.workers(), on_error="return")
        if len(found) >= (wanted or 1):
            break
        if time.monotonic() >= give_up:
            raise EngineError(
                f"{len(found)} workers came to the Dask scheduler at {address} within "
                f"{timeout_s:g} s, {wanted or 1} were asked for. Start them with `dask worker "
                f"{address} --nthreads 1`, or lower engine.workers."
            )
        time.sleep(_LOOK_S)
    for worker, reply in found.items():
        if isinstance(reply, Exception):
            ours = _versions_here()["ddlflow"]
            raise EngineError(
                f"The Dask worker at {worker} cannot run ddlflow ({one_line(reply)}). Install "
                f"ddlflow {ours} there."
            )
    return found


def _versions_here() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _SAME if name != "python"}
    # A pickled function runs on the same minor version of Python alone.
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}"} | packages


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


def _hide_log() -> Callable[[], None]:
    """Silence Dask, which logs tracebacks of what is told as an error; returns how to undo it."""
    levels = {log: log.level for log in map(logging.getLogger, _LOGS)}
    for log in levels:
        log.setLevel(logging.CRITICAL)

    def undo() -> None:
        for log, level in levels.items():
            log.setLevel(level)

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
