"""Workers that call the driver: one authenticated connection each, for a cluster that gives
processes and no way to talk to them while they run.

Messages are pickled; who does not have the engine's key is heard no further than that. The key
travels with the work, by the cluster's own way.
"""

import os
import queue
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from types import TracebackType
from typing import Self

from ddlflow.errors import EngineError

_KEY_BYTES = 32
_CONNECT_S = 10.0
# A host that is cut off or switched off sends no end: the kernel asks after 10 s of silence.
_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# What a connection raises once the other side is gone.
GONE = (OSError, EOFError)


@dataclass(frozen=True, slots=True)
class Home:
    """Where to call, and by what key; small to send."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Caller:
    """A worker that called.

    Attributes:
        place: which of the work's parts it has, from 0.
        host: its address, as it reached the driver by it.
        pid: its process.
        machine: the name that its host gives itself.
        connection: to talk to it.
    """

    place: int
    host: str
    pid: int
    machine: str
    connection: Connection


@dataclass(frozen=True, slots=True)
class _Hello:
    work: str
    place: int
    host: str
    pid: int
    machine: str


Calls = queue.SimpleQueue[Caller]


class Door:
    """Where workers call, on the driver. A context manager.

    Args:
        host: this machine's address, as workers reach it.
        bind: the address to listen at, where that is another one.
    """

    def __init__(self, host: str, bind: str | None = None) -> None:
        """Open it at a free port.

        Raises:
            EngineError: this machine has no such address.
        """
        try:
            self._socket = socket.create_server((bind or host, 0))
        except OSError as error:
            raise EngineError(
                f"Nothing can listen at {bind or host} on this machine ({error}). Set "
                "spark.driver.host and spark.driver.bindAddress in engine.conf to addresses of it."
            ) from error
        port = self._socket.getsockname()[1]
        self.home = Home(host, port, secrets.token_bytes(_KEY_BYTES))
        self._expected: dict[str, Calls] = {}
        threading.Thread(target=self._answer_all, name="ddlflow-door", daemon=True).start()

    def expect(self, work: str) -> Calls:
        """The calls from workers of a piece of work, as they come; see `no_more`."""
        return self._expected.setdefault(work, queue.SimpleQueue())

    def no_more(self, work: str) -> None:
        """Turn away whoever calls for this work from now on, and hang up on who was not met."""
        calls = self._expected.pop(work, None)
        while calls is not None and not calls.empty():
            calls.get().connection.close()

    def close(self) -> None:
        """Answer nobody any more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer_all(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            # A thread each: a stranger who says nothing holds up nobody.
            threading.Thread(target=self._answer, args=(accepted,), daemon=True).start()

    def _answer(self, accepted: socket.socket) -> None:
        _keep_alive(accepted)
        connection = Connection(accepted.detach())
        try:
            deliver_challenge(connection, self.home.key)
            answer_challenge(connection, self.home.key)
            hello: _Hello = connection.recv()
        except (*GONE, AuthenticationError, ValueError, AssertionError):
            connection.close()
            return
        calls = self._expected.get(hello.work)
        if calls is None:  # the work is over
            connection.close()
        else:
            calls.put(Caller(hello.place, hello.host, hello.pid, hello.machine, connection))


def call(home: Home, work: str, place: int, pid: int) -> Connection:
    """Call the driver, on a worker.

    Args:
        home: of the driver's `Door`.
        work: which piece of work this is for.
        place: which part of it.
        pid: of this process.

    Raises:
        EngineError: the driver cannot be reached from here.
    """
    try:
        called = socket.create_connection((home.host, home.port), _CONNECT_S)
        called.settimeout(None)
        _keep_alive(called)
        host = called.getsockname()[0]
        connection = Connection(called.detach())
        answer_challenge(connection, home.key)
        deliver_challenge(connection, home.key)
        connection.send(_Hello(work, place, host, pid, socket.gethostname()))
    except (*GONE, AuthenticationError) as error:
        raise EngineError(
            f"{socket.gethostname()} cannot call the driver at {home.host}:{home.port} "
            f"({type(error).__name__}: {error}). Set spark.driver.host in engine.conf to an "
            "address of the driver's machine that executors reach."
        ) from error
    return connection


def hang_up(connection: Connection) -> None:
    """End a connection that a thread may be reading; it is still to be closed."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _keep_alive(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
