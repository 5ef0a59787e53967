"""Open engine dask: connect to the scheduler at an address."""

import importlib.metadata
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from distributed import Client
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from ddlflow.engines.dask import DaskEngine
from ddlflow.engines.dask_ranks import Cluster, one_line
from ddlflow.errors import EngineError, SpecError
from ddlflow.spec.site import EngineSection, Tls

_CONNECT_S = 5.0
_LOOK_S = 0.2
_LOGS = ("distributed", "distributed.client")  # Dask gives each a level of its own
# Code and pickles travel between these; other versions of them fail in ways that are hard to read.
_SAME = ("python", "dask", "distributed", "ddlflow")


def connect_dask(engine: EngineSection) -> DaskEngine:
    """Use the workers of a scheduler that runs already.

    Args:
        engine: the site's section, with the scheduler's address; ``workers`` says how many workers
            to wait for and use, and ``auto`` all that are there.

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
        label=f"dask at {address}, {slots} of {num_workers} workers",
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
    versions = {}
    for worker, reply in found.items():
        if isinstance(reply, Exception):
            ours = _versions_here()["ddlflow"]
            raise EngineError(
                f"The Dask worker at {worker} cannot run ddlflow ({one_line(reply)}). Install "
                f"ddlflow {ours} there."
            )
        versions[worker] = reply
    return versions


def _versions_here() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _SAME if name != "python"}
    # A pickled function runs on the same minor version of Python alone.
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}"} | packages


def _hide_log() -> Callable[[], None]:
    """Silence Dask, which logs tracebacks of what is told as an error; returns how to undo it."""
    levels = {log: log.level for log in map(logging.getLogger, _LOGS)}
    for log in levels:
        log.setLevel(logging.CRITICAL)

    def undo() -> None:
        for log, level in levels.items():
            log.setLevel(level)

    return undo
