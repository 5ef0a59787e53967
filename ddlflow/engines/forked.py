"""A process that a fork server forks, from outside.

It is watched and ended by `Forked`, as one that was started afresh is by ``subprocess.Popen``.
"""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from ddlflow.engines.fork_owner import Offer
from ddlflow.engines.fork_server import Order


class Forked:
    """A process that a fork server forks; one that has not come yet counts as running.

    Attributes:
        lost: the server ended before the process was there: nothing was started.
        orphaned: the server ended while the process ran, and took it along.
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
        self.lost = self.orphaned = False
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
            self.orphaned = not self.lost
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
