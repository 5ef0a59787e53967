"""Fork servers from outside: started once for an environment, asked for a process at a time.

An engine, or a worker of a cluster, owns `ForkServers`. A process that one of them forked is
watched and ended by `Forked`, as one that was started afresh is by ``subprocess.Popen``.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ddlflow.engines.fork_server import CALM, READY, Order

SWITCH = "DDLFLOW_FORK_SERVER"  # 0: each rank is a fresh interpreter
_CLOSE_S = 5.0
_LONGEST_FOLDER = 80  # an address of AF_UNIX has 107 bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """A fork server of this host, for who has the same environment.

    Attributes:
        address: of its socket.
        key: of its environment and modules, as `key_of` gives it.
    """

    address: str
    key: str

    @property
    def is_ready(self) -> bool:
        """Whether it has imported all: a fork does not wait."""
        return Path(self.address).with_name(READY).exists()


def key_of(environment: Mapping[str, str], modules: Sequence[str]) -> str:
    """What a process that is forked has to have in common with its server, as a hash."""
    told = [sys.executable, sorted(environment.items()), list(modules)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


class ForkServers:
    """The fork servers of one owner, by what they have imported and the environment they did it in.

    They end when `close` is called or the owner's process ends, whatever comes first, and with them
    all that they forked.
    """

    def __init__(self) -> None:
        self._started: dict[str, tuple[Offer, subprocess.Popen[bytes]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def offer(self, environment: Mapping[str, str], modules: Sequence[str]) -> Offer | None:
        """A server for this environment, started now if there is none; it may still import.

        Returns:
            None where there can be none: no modules, another system than Linux, the variable
            `SWITCH`, or a server that ended by itself.
        """
        if not modules or sys.platform != "linux" or environment.get(SWITCH) == "0":
            return None
        key = key_of(environment, modules)
        with self._lock:
            if self._closed:
                return None
            if key not in self._started:
                try:
                    self._started[key] = _start(key, environment, modules)
                except OSError:  # no room for a socket or a process: who asked does without
                    return None
            offer, process = self._started[key]
            return offer if process.poll() is None else None

    def close(self) -> None:
        """End the servers and all that they forked."""
        with self._lock:
            self._closed = True
            started = list(self._started.values())
            self._started.clear()
        for _, process in started:
            assert process.stdin is not None
            process.stdin.close()
        for offer, process in started:
            try:
                process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:  # in the middle of an import, say
                process.kill()
                process.wait()
            shutil.rmtree(Path(offer.address).parent, ignore_errors=True)


def _start(
    key: str, environment: Mapping[str, str], modules: Sequence[str]
) -> tuple[Offer, subprocess.Popen[bytes]]:
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(
        prefix="ddlflow-fork-",
        dir=place if len(place) < _LONGEST_FOLDER else "/tmp",  # noqa: S108
    )
    address = str(Path(folder) / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)  # clients may come while it imports
        number = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "ddlflow.engines.fork_server", str(number), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={CALM[0]: CALM[1], **environment},
            pass_fds=(number,),
            start_new_session=True,  # no Ctrl-C from the terminal
        )
    return Offer(address, key), process


class Forked:
    """A process that a fork server forks; one that has not come yet counts as running.

    Attributes:
        lost: the server ended before the process was there: nothing was started.
    """

    def __init__(self, offer: Offer, order: Order, descriptors: Sequence[int]) -> None:
        """Ask for it; the descriptors are those of standard input, the log and its own.

        Raises:
            OSError: the server is not there.
        """
        self._lock = threading.Lock()
        self._said = b""
        self._pid: int | None = None
        self._ended = False
        self.returncode: int | None = None
        self.lost = False
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(offer.address)
            text = json.dumps(asdict(order)).encode() + b"\n"
            sent = socket.send_fds(self._connection, [text], list(descriptors))
            self._connection.sendall(text[sent:])
            self._connection.setblocking(False)
        except OSError:
            self._connection.close()
            raise

    @property
    def pid(self) -> int | None:
        """Its number; None before it is there."""
        self.poll()
        return self._pid

    def poll(self) -> int | None:
        """See ``Popen.poll``."""
        with self._lock:
            if self.returncode is None:
                self._hear()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """See ``Popen.wait``."""
        give_up = None if timeout is None else time.monotonic() + timeout
        while (returncode := self.poll()) is None:
            if give_up is not None and time.monotonic() >= give_up:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            time.sleep(0.005)
        return returncode

    def send_signal(self, sig: int) -> None:
        """See ``Popen.send_signal``; a process that is not there yet will not come."""
        if self.poll() is not None:
            return
        with self._lock:
            if self._pid is None:
                self._end(-sig)
            else:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, sig)

    def kill(self) -> None:
        """See ``Popen.kill``."""
        self.kill_group()

    def kill_group(self) -> None:
        """Kill it and all that it started; if it is not there yet, it will not come."""
        self.poll()
        with self._lock:
            if self.returncode is not None:
                return  # the server has killed what it left
            if self._pid is None:
                self._end(-signal.SIGKILL)
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def _hear(self) -> None:
        """Read what the server said so far."""
        try:
            while chunk := self._connection.recv(256):
                self._said += chunk
        except BlockingIOError:
            self._understand()
            return
        except OSError:
            pass
        self._understand()
        if self.returncode is None:  # the server has ended
            self.lost = self._pid is None
            if self._pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
            self._end(-signal.SIGKILL)

    def _understand(self) -> None:
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            if self._pid is None:
                self._pid = int(line)
            else:
                self._end(int(line))

    def _end(self, returncode: int) -> None:
        self.returncode = returncode
        self._connection.close()
