"""The pages of ``ddlflow ui``: MLflow's server as a process of ours, beside Prefect's.

It listens on this machine alone (127.0.0.1), on a port that the operating system says is free, and
ends with us: it is a process group of its own, stopped as a whole.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from ddlflow.errors import TrackingError
from ddlflow.tracking.uris import absolute, database_path, page

_HOST = "127.0.0.1"
_PORT_TRIES = 3  # another process can take a free port before the server binds it
_STOP_S = 10.0  # for a server to end after SIGTERM; it is killed after


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A server to start: ``python -m MODULE ARGUMENTS --host HOST --port PORT``."""

    name: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    health: str  # the path that answers 200 when it serves


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started, the leader of its own process group."""

    program: ServerProgram
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace").strip()

    @property
    def last_words(self) -> str:
        return (self.log_text().splitlines() or ["it said nothing."])[-1].strip()


@dataclass(frozen=True, slots=True)
class Pages:
    """Where to look; ``servers`` are those of them that this process runs."""

    mlflow: str
    prefect: str | None
    servers: tuple[Server, ...]


@contextmanager
def pages(
    tracking_uri: str, *, prefect: Callable[[], str | None], start_s: float = 120.0
) -> Iterator[Pages]:
    """Serve the pages while the block lasts.

    A tracking URI that is a server has pages already: its address is returned and nothing started.

    Args:
        tracking_uri: MLflow's tracking URI.
        prefect: gives the address of Prefect's pages; called once MLflow's are there.
        start_s: how long the servers may take until they answer.

    Raises:
        TrackingError: A server ended, or did not answer in time.
    """
    uri = absolute(tracking_uri)
    has_mlflow = uri.startswith(("http://", "https://"))
    programs = [] if has_mlflow else [_mlflow(uri)]
    with tempfile.TemporaryDirectory(prefix="ddlflow-ui-") as logs:
        servers: dict[str, Server] = {}
        try:
            for program in programs:  # all at once, as each takes seconds
                servers[program.name] = _start(program, Path(logs))
            deadline = time.monotonic() + start_s
            for program in programs:
                for tries_left in reversed(range(_PORT_TRIES)):
                    if _answers(servers[program.name], deadline):
                        break
                    _raise_unless_clash(servers[program.name], tries_left, start_s)
                    stop([servers[program.name]])
                    servers[program.name] = _start(program, Path(logs))
            yield Pages(
                mlflow=page(uri, None, None) if has_mlflow else servers["MLflow"].address,
                prefect=prefect(),
                servers=tuple(servers.values()),
            )
        finally:
            stop(list(servers.values()))


def ui(
    tracking_uri: str, *, prefect: Callable[[], str | None], say: Callable[[Pages], None]
) -> None:
    """Serve the pages until Ctrl-C or SIGTERM, which is how to end it and no error.

    Args:
        tracking_uri: MLflow's tracking URI.
        prefect: see `pages`.
        say: is told the addresses once the pages answer.

    Raises:
        TrackingError: A page did not start, or ended on its own.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with pages(tracking_uri, prefect=prefect) as served:
            say(served)
            while served.servers:  # none is ours: there is nothing to keep up
                for server in served.servers:
                    if server.process.poll() is not None:
                        raise TrackingError(
                            f"The {server.program.name} page ended on its own: {server.last_words}"
                        )
                time.sleep(0.5)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(servers: Sequence[Server]) -> None:
    """End servers with all their processes; an impatient second Ctrl-C leaves none behind."""
    with _undisturbed():
        family: list[psutil.Process] = []
        for server in servers:
            with suppress(psutil.NoSuchProcess):
                leader = psutil.Process(server.process.pid)
                family += [leader, *leader.children(recursive=True)]
        for server in servers:
            _signal_group(server, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=_STOP_S)
        for server in servers:
            _signal_group(server, signal.SIGKILL)
        for process in alive:  # one that left its group
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for server in servers:
            server.process.wait()


def _mlflow(uri: str) -> ServerProgram:
    arguments = ["mlflow", "server", "--workers", "1"]
    database = database_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        arguments += ["--artifacts-destination", str(database.parent / "mlartifacts")]
    variables = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: any user can read those
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three more processes, for LLM scorers
    }
    return ServerProgram("MLflow", tuple(arguments), variables, "/health")


def _start(program: ServerProgram, logs: Path) -> Server:
    port = _free_port()
    address = f"http://{_HOST}:{port}"
    variables = {k: v.replace("{address}", address) for k, v in program.variables.items()}
    log = logs / f"{program.name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *program.arguments, "--host", _HOST, "--port", str(port)],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(program, address, process, log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _answers(server: Server, deadline: float) -> bool:
    """Wait until the server serves; False if it ended or time is up."""
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError), no_proxy.open(server.address + server.program.health, timeout=5):
            return server.process.poll() is None
        time.sleep(0.1)
    return False


def _raise_unless_clash(server: Server, tries_left: int, start_s: float) -> None:
    name = server.program.name
    if server.process.poll() is None:
        raise TrackingError(f"The {name} page does not answer after {start_s:g} s.")
    is_clash = "address already in use" in server.log_text().lower()
    if not is_clash or tries_left == 0:
        raise TrackingError(f"The {name} page did not start: {server.last_words}")


def _signal_group(server: Server, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, number)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for a moment. (Only the main thread gets them at all.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
