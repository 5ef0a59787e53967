"""Several hosts in one machine: namespaces of processes, mounts, names and, if asked, network.

All share the disk, as hosts do that mount one storage, and the kernel, as two containers of one
node do. Each has process numbers of its own that start at 1, a /proc that shows these alone, a name
(two may have the same, as containers with ``hostNetwork`` do), and mounts of its own::

    def test_it(hosts: OpenHosts, tmp_path: Path) -> None:
        first, second = hosts("node", "node")           # or hosts("a", "b", network=True)
        process = first.start([sys.executable, "-c", "..."], stdout=subprocess.PIPE)
        second.run(["touch", str(tmp_path / "seen")])   # waits for it
        first.signal(process, signal.SIGSTOP)           # the command itself
        first.end()                                     # all of it at once, as without power

With ``network`` each host has an address of its own on a network of the hosts and the test alone;
without, all share the network of the machine.
"""

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from ddlflow.store.owner import this_owner

# Process 1 of a host: it keeps the namespaces and lets orphans go.
INIT = """
import signal

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


class OpenHosts(Protocol):
    """The fixture ``hosts``: opens hosts by their names, for as long as the test runs."""

    def __call__(self, *names: str, network: bool = False) -> "list[Host]": ...


@dataclass(frozen=True, slots=True)
class Host:
    """A host that runs.

    Attributes:
        name: what it calls itself.
        address: its IP address, or None where it shares the machine's network.
        init: its first process, as the machine numbers it.
    """

    name: str
    address: str | None
    init: int

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Starts a command here; ``options`` are those of Popen.

        Its ``pid`` is that of the way into the host, which ends with the command and its status.
        """
        spaces = ["--pid", "--mount", "--uts", *(["--net"] if self.address else [])]
        folder = Path(options.get("cwd") or Path.cwd()).absolute()  # else it would be the root
        enter = ["nsenter", "-t", str(self.init), *spaces, f"--wdns={folder}", "--"]
        return subprocess.Popen([*enter, *command], **options)

    def run(self, command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs a command here to its end; what it says is captured."""
        with self.start(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        ) as process:
            said, wrong = process.communicate()
        return subprocess.CompletedProcess(list(command), process.returncode, said, wrong)

    def process(self, started: "subprocess.Popen[Any]") -> psutil.Process:
        """The command that ``start`` started, as the machine sees it."""
        (child,) = psutil.Process(started.pid).children()
        return child

    def signal(self, started: "subprocess.Popen[Any]", number: signal.Signals) -> None:
        """Sends a signal to a command that ``start`` started."""
        self.process(started).send_signal(number)

    def end(self) -> None:
        """Kills all that runs here, and returns when it is dead. It cannot be used any more."""
        with suppress(psutil.NoSuchProcess):
            init = psutil.Process(self.init)
            init.kill()
            init.wait()  # process 1 goes last


@contextmanager
def open_hosts(*names: str, network: bool = False) -> Iterator[list[Host]]:
    """Hosts of these names, until the end.

    A test that asks for them skips where this process may not make namespaces.
    """
    with ExitStack() as stack:
        net = stack.enter_context(_network()) if network else None
        yield [
            stack.enter_context(_host(name, net, number)) for number, name in enumerate(names, 2)
        ]


@contextmanager
def _host(name: str, net: str | None, number: int) -> Iterator[Host]:
    spaces = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts"]
    named = ["sh", "-c", 'hostname "$0" && exec "$@"', name, sys.executable, "-S", "-c", INIT]
    keeper = subprocess.Popen(
        ["unshare", *spaces, *(["--net"] if net else []), *named],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    try:
        if keeper.stdout.readline() != "ready\n":
            pytest.skip(f"namespaces cannot be made here: {keeper.communicate()[1].strip()}")
        (init,) = psutil.Process(keeper.pid).children()
        address = _join(net, number, init.pid) if net else None
        yield Host(name, address, init.pid)
    finally:
        keeper.kill()  # and with it, by --kill-child, all of the host
        keeper.communicate()


@contextmanager
def _network() -> Iterator[str]:
    """A network of its own: the name of the bridge that this machine is on as number 1."""
    bridge = f"d{uuid.uuid4().hex[:8]}"
    try:
        _ip("link", "add", bridge, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        wrong = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"a network cannot be made here: {wrong}")
    try:
        _ip("address", "add", f"{_address(bridge, 1)}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield bridge
    finally:
        _ip("link", "delete", bridge)


def _join(bridge: str, number: int, init: int) -> str:
    """Gives a host its place on the network; returns its address."""
    outer = f"{bridge}.{number}"
    inner = ["nsenter", "-t", str(init), "--net"]
    _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(init))
    _ip("link", "set", outer, "master", bridge, "up")
    _ip("link", "set", "lo", "up", within=inner)
    _ip("address", "add", f"{_address(bridge, number)}/24", "dev", "eth0", within=inner)
    _ip("link", "set", "eth0", "up", within=inner)
    return _address(bridge, number)


def _address(bridge: str, number: int) -> str:
    """10.x.y.number: tests that run side by side have networks of their own."""
    chosen = int(bridge[1:5], 16)
    return f"10.{128 + chosen // 256 % 128}.{chosen % 256}.{number}"


def _ip(*arguments: str, within: Sequence[str] = ()) -> None:
    subprocess.run([*within, "ip", *arguments], check=True, capture_output=True, text=True)


def half_written(path: Path, content: bytes = b"half") -> Path:
    """The temporary file of a writer of ``path`` that was killed on this host."""
    killed = replace(this_owner(), started=1)
    left = path.with_name(f".{path.name}.{killed.name}.{uuid.uuid4().hex}.tmp")
    left.write_bytes(content)
    return left


def mount_over(host: Host, folder: Path) -> None:
    """Hides what is in a folder from one host: a view of its own, as of a disk that was lost."""
    done = host.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)])
    assert done.returncode == 0, done.stderr
