"""The fork servers of this process, as their owner has them: started once for an environment.

They serve all engines of the process, one after the other or at once: each has `ForkServers`, as a
worker of a cluster has. What they fork is a `ddlflow.engines.forked.Forked`.
"""

import atexit
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddlflow.engines.fork_server import CALM, READY

SWITCH = "DDLFLOW_FORK_SERVER"  # 0: each rank is a fresh interpreter
# Read by nothing that a server imports, so a fork can be given its own. Any other variable may be.
_LATE = ("AWS_", "AZURE_", "DDLFLOW_", "GOOGLE_", "MLFLOW_", "PREFECT_", "PYTEST_")
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
    counted = {name: value for name, value in environment.items() if not name.startswith(_LATE)}
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    is_relative = folders != [""] and not all(map(os.path.isabs, folders))
    common = [
        sys.executable,
        sorted(counted.items()),
        list(modules),
        str(Path.cwd()) if is_relative else None,
    ]
    return hashlib.sha256(json.dumps(common).encode()).hexdigest()


class ForkServers:
    """The fork servers of one user in this process: an engine, or a worker of a cluster.

    The one that was asked for last lives on after `close`, for the process's next engine; with the
    process all of them end, and all that they forked.
    """

    def __init__(self) -> None:
        self.is_closed = False

    def offer(self, environment: Mapping[str, str], modules: Sequence[str]) -> Offer | None:
        """A server for this environment, started now if there is none; it may still import.

        Returns:
            None where there can be none: no modules, another system than Linux, the variable
            `SWITCH`, or a server that ended as it could not import them.
        """
        if not modules or sys.platform != "linux" or environment.get(SWITCH) == "0":
            return None
        try:
            return _here.offer(self, environment, modules)
        except OSError:  # no room for a socket or a process: who asked does without
            return None

    def close(self) -> None:
        """Give the servers up; there are no more offers."""
        _here.give_up(self)


@dataclass(slots=True)
class _OwnServer:
    """A server that was started.

    Attributes:
        lifeline: our end of its standard input.
        users: that were not closed.
    """

    offer: Offer
    process: subprocess.Popen[bytes]
    lifeline: int
    users: set[ForkServers] = field(default_factory=set)

    def end(self) -> None:
        """End it and all that it forked."""
        os.close(self.lifeline)
        if not self.offer.is_ready:  # it would look up after its imports alone
            self.process.kill()
        try:
            self.process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(Path(self.offer.address).parent, ignore_errors=True)


class _OwnServers:
    """Those of this process by their keys, the one that was asked for last at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[str, _OwnServer] = {}
        self._is_over = False

    def offer(
        self, user: ForkServers, environment: Mapping[str, str], modules: Sequence[str]
    ) -> Offer | None:
        """See `ForkServers.offer`.

        Raises:
            OSError: it cannot be started.
        """
        key = key_of(environment, modules)
        with self._lock:
            if self._is_over or user.is_closed:
                return None
            server = self._by_key.pop(key, None)
            if server is not None and (server.process.poll() or 0) < 0:  # killed
                server.end()
                server = None
            if server is None:
                server = _start(key, environment, modules)
            self._by_key[key] = server
            server.users.add(user)
            not_wanted = self._take_idle()
        _end(not_wanted)
        return server.offer if server.process.poll() is None else None

    def give_up(self, user: ForkServers) -> None:
        """Ends those that no one else uses, but the one that was asked for last."""
        with self._lock:
            user.is_closed = True
            for server in self._by_key.values():
                server.users.discard(user)
            not_wanted = self._take_idle()
        _end(not_wanted)

    def end(self) -> None:
        """Ends all, for good."""
        with self._lock:
            self._is_over = True
            all_of_them = list(self._by_key.values())
            self._by_key.clear()
        _end(all_of_them)

    def forget(self) -> None:
        """In a fork of this process, which has servers of its own."""
        for server in self._by_key.values():
            os.close(server.lifeline)  # or they would live for as long as this process
            server.process.returncode = 0  # not its child
        self._lock = threading.Lock()  # another thread may have had it
        self._by_key.clear()

    def _take_idle(self) -> list[_OwnServer]:
        """Takes those out that nobody uses, but the last one where it runs."""
        taken = []
        for key, server in list(self._by_key.items()):
            is_last = key == next(reversed(self._by_key))
            if not server.users and not (is_last and server.process.poll() is None):
                taken.append(self._by_key.pop(key))
        return taken


def _end(servers: list[_OwnServer]) -> None:
    for server in servers:
        server.end()


_here = _OwnServers()
os.register_at_fork(after_in_child=_here.forget)
atexit.register(_here.end)


def _start(key: str, environment: Mapping[str, str], modules: Sequence[str]) -> _OwnServer:
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(
        prefix="ddlflow-fork-",
        dir=place if len(place) < _LONGEST_FOLDER else "/tmp",  # noqa: S108
    )
    address = str(Path(folder) / "socket")
    stdin, lifeline = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(socket.SOMAXCONN)  # clients may come while it imports
            number = listener.fileno()
            process = subprocess.Popen(
                [sys.executable, "-m", "ddlflow.engines.fork_server", str(number), *modules],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={CALM[0]: CALM[1], **environment},
                pass_fds=(number,),
                start_new_session=True,  # no Ctrl-C from the terminal
            )
    except OSError:
        os.close(lifeline)
        raise
    finally:
        os.close(stdin)
    return _OwnServer(Offer(address, key), process, lifeline)
