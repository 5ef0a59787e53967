"""The program of a fork server: imports modules once, and forks a process of its own for each job.

``python -m ddlflow.engines.fork_server LISTENER MODULE...``

PyTorch takes seconds to import; a fork of a process that has it takes 20 ms. What starts this
program is `ddlflow.engines.fork_owner`. Each connection to the listening socket is the
life of one process: the client sends an `Order` as one JSON line, with the descriptors of standard
input, of the log and one more; a line with the process's number comes back, and a line with its
return code once it has ended. Where the connection ends before, the client is dead, and the process
is killed with all that it started. The end of standard input is the end of the owner, of this
program and of all that it forked.

What a fork may not inherit is not there: no thread runs, no GPU is in use, no user's module is
imported, nothing was computed. Variables that libraries read as they are loaded
(``OMP_NUM_THREADS``) are those of the jobs, as that has happened here; the order brings the others.
Where a fresh interpreter would import other files than were imported here, a fork becomes one.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

# Arrow's own thread for memory that was freed would be one more at each fork.
CALM = ("JE_ARROW_MALLOC_CONF", "background_thread:false")
READY = "ready"  # a file beside the socket: all is imported
NUM_DESCRIPTORS = 3
_ORDER_BYTES = 1 << 16
_ORDER_S = 10.0  # a client that connected and was stopped must not stop the others


@dataclass(frozen=True, slots=True)
class Order:
    """A process to fork, which then is as ``python -m module *arguments option N`` in a folder.

    Attributes:
        module: run as ``__main__``.
        arguments: its command line, without the last two.
        option: precedes the number of the third descriptor, which is the job's own.
        folder: the working folder.
        environment: all its variables.
        has_own_path: the module sets ``sys.path`` itself; for others the folder is first in it.
    """

    module: str
    arguments: tuple[str, ...]
    option: str
    folder: str
    environment: dict[str, str]
    has_own_path: bool = False


class _Server:
    """The listening socket, and a connection for each process that runs."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._new: dict[int, socket.socket] = {}  # by descriptor, before their order came
        self._running: dict[int, socket.socket | None] = {}  # by process; None: the client is gone

    def serve(self) -> tuple[Order, list[int]] | None:
        """Forks until the owner is gone.

        Returns:
            In a forked process what it is to be, with its descriptors; None in the server.
        """
        while True:
            clients = {
                connection.fileno(): pid
                for pid, connection in self._running.items()
                if connection is not None
            }
            listener = self._listener.fileno()
            ready, _, _ = select.select([0, listener, self._woken, *self._new, *clients], [], [])
            if 0 in ready:
                self._kill_all()
                return None
            for one in ready:
                if one == self._woken:
                    self._reap()
                elif one == listener:
                    connection, _ = self._listener.accept()
                    self._new[connection.fileno()] = connection
                elif one in self._new:
                    found = self._fork(self._new.pop(one))
                    if found is not None:
                        return found
                elif one in clients:
                    self._hung_up(clients[one])

    def _fork(self, connection: socket.socket) -> tuple[Order, list[int]] | None:
        """Forks for a connection whose order has come."""
        descriptors: list[int] = []
        try:
            connection.settimeout(_ORDER_S)
            text, descriptors, _, _ = socket.recv_fds(connection, _ORDER_BYTES, NUM_DESCRIPTORS)
            while text and not text.endswith(b"\n"):
                text += (more := connection.recv(_ORDER_BYTES))
                if not more:
                    break
            order = Order(**json.loads(text))
            _look_for(connection)
        except (OSError, ValueError, TypeError):  # the client is gone
            for one in (connection.detach(), *descriptors):
                os.close(one)
            return None
        alone, said = os.pipe()  # the child has left our session: its group can be killed
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._leave()
            os.close(alone)
            os.setsid()
            os.close(said)
            return order, descriptors
        os.close(said)
        os.read(alone, 1)
        for descriptor in (alone, *descriptors):
            os.close(descriptor)
        self._running[pid] = connection
        _send(connection, pid)
        return None

    def _leave(self) -> None:
        """In a forked process: closes what is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for connection in (*self._new.values(), *self._running.values(), self._listener):
            if connection is not None:
                connection.close()
        os.close(self._woken)
        os.close(self._wake)

    def _hung_up(self, pid: int) -> None:
        """A client whose connection has ended, or that said what it should not."""
        connection = self._running[pid]
        if connection is not None:
            connection.close()
        self._running[pid] = None
        _kill_group(pid)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass
        while self._running:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            _kill_group(ended.si_pid)  # what it left; while it is not reaped the number is its own
            _, status = os.waitpid(ended.si_pid, 0)
            connection = self._running.pop(ended.si_pid)
            if connection is not None:
                _send(connection, os.waitstatus_to_exitcode(status))
                connection.close()

    def _kill_all(self) -> None:
        for pid in self._running:
            _kill_group(pid)


def _look_for(client: socket.socket) -> None:
    """Raises ConnectionError where a client has gone since it sent its order."""
    client.setblocking(False)
    with suppress(BlockingIOError):
        if not client.recv(1, socket.MSG_PEEK):
            raise ConnectionError


def _send(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # the client is gone, and is found as such
        connection.sendall(b"%d\n" % number)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _become(order: Order, descriptors: list[int]) -> None:
    """Runs a forked process's module, as a fresh interpreter would."""
    stdin, log, own = descriptors
    for source, target in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for descriptor in {stdin, log}:
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    command = [order.module, *order.arguments, order.option, str(own)]
    importlib.invalidate_caches()  # user code may be newer than the last look into a folder
    if not order.has_own_path and _would_differ(order.folder):
        os.set_inheritable(own, True)
        os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606
    sys.path[0] = order.folder
    if "numpy" in sys.modules:  # Python's own generator is seeded anew in each fork
        sys.modules["numpy"].random.seed()
    sys.argv = command
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def _would_differ(folder: str) -> bool:
    """Whether a fresh interpreter in a folder would import other files than were imported here."""
    found = {name: _origin(module) for name, module in sys.modules.items() if "." not in name}
    files = {name: file for name, file in found.items() if file and name != "__main__"}
    here, *path = map(os.path.realpath, sys.path)  # here: where this program was started
    is_left = os.path.realpath(folder) != here and here not in path
    if is_left and any(_in(here, name) == os.path.realpath(files[name]) for name in files):
        return True
    with suppress(OSError):
        beside = {entry.name.partition(".")[0] for entry in Path(folder).iterdir()}
        for name in beside & files.keys():
            file = _in(folder, name)
            if file is not None and file != os.path.realpath(files[name]):
                return True
    return False


def _in(folder: str, name: str) -> str | None:
    """The file that a module is imported from where a folder comes first; None if not from it."""
    spec = PathFinder.find_spec(name, [folder])
    return None if spec is None or spec.origin is None else os.path.realpath(spec.origin)


def _origin(module: ModuleType) -> str | None:
    """A module's file; None for one that comes with the interpreter, before all folders."""
    spec = getattr(module, "__spec__", None)
    return spec.origin if spec is not None and spec.has_location else None


def main() -> None:
    """Imports, listens and forks, until the owner is gone."""
    number, *modules = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to answer
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    address = Path(listener.getsockname())
    found = None
    try:
        for module in modules:
            importlib.import_module(module)
        address.with_name(READY).touch()
        gc.collect()
        gc.freeze()  # shared with the forks: a collection would touch, and copy, every page
        found = _Server(listener).serve()
    finally:
        if found is None:
            with suppress(OSError):
                for name in (READY, address.name):
                    address.with_name(name).unlink(missing_ok=True)
                address.parent.rmdir()
    if found is not None:
        _become(*found)


if __name__ == "__main__":
    main()
