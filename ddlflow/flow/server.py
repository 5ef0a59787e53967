"""The Prefect server that a user's commands share: started when a run needs it, ended when idle.

A server takes 4 to 10 s to start, so it stays for a while after its last command. Several commands
use it at once, ``ddlflow ui`` shows its pages, and a server that died is replaced. It listens on
this machine alone. Where ``PREFECT_API_URL`` or Prefect's profile names a server, that one counts.

    <PREFECT_HOME>/ddlflow/KEY/     KEY: of this machine, and of what the server is made from
        server.json                 where it listens, and which process it is
        server.log                  what it said
        lock                        held by who looks for it, starts it or ends it
        users/*_NAME                the commands that use it, by their processes

The program of the server is `ddlflow.flow.server_process`.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import ddlflow
from ddlflow.errors import DdlflowError
from ddlflow.flow.settings import settle_prefect
from ddlflow.store.owner import Owner, owner_of, owner_of_process, this_owner

IDLE_VARIABLE = "DDLFLOW_PREFECT_IDLE_S"  # 0: it ends with the last command that uses it
IDLE_S = 600.0
_HOST = "127.0.0.1"
_START_S = 180.0  # its first start makes a database; on a busy machine that takes a minute
_HUNG_S = 30.0  # one that is there and does not answer for so long is replaced
_POLL_S = 0.05
# Not the server's: of one command, or of who asks it.
_NOT_ITS_OWN = ("DDLFLOW_COMMAND", "PREFECT_API_URL")


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """A server that is there or about to be.

    Attributes:
        address: of its pages, ``http://127.0.0.1:PORT``.
        process: that serves.
        folder: of its files.
        is_new: this command has started it.
    """

    address: str
    process: Owner
    folder: Path
    is_new: bool

    @property
    def words(self) -> str:
        """For the user."""
        state = "which starts now" if self.is_new else "which runs already"
        return f"{self.address}, {state}; your commands share it (`ddlflow ui` has its page)"

    @property
    def api_url(self) -> str:
        return f"{self.address}/api"

    @property
    def answers(self) -> bool:
        """Whether it serves."""
        no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with no_proxy.open(f"{self.api_url}/health", timeout=5) as answer:
                return bool(answer.read() == b"true")
        except OSError:
            return False


def named_by_the_user() -> str | None:
    """The server that ``PREFECT_API_URL`` or the profile in use names; None where neither does."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    settle_prefect()
    from prefect.settings import PREFECT_API_URL

    found: str | None = PREFECT_API_URL.value()
    return found


@contextmanager
def shared_server() -> Iterator[PrefectServer]:
    """The shared server for as long as the block lasts; one that is missing is being started.

    It may not answer yet: `wait_until_ready`.
    """
    folder = _folder()
    user = folder / "users" / f"{uuid.uuid4().hex[:8]}_{this_owner().name}"
    user.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        server = running_server(folder) or _start(folder)
        user.touch()
    try:
        yield server
    finally:
        user.unlink(missing_ok=True)


def wait_until_ready(server: PrefectServer) -> PrefectServer:
    """Returns the server once it serves: another one where it had died or hangs.

    Raises:
        DdlflowError: none can be started.
    """
    give_up = time.monotonic() + (_START_S if server.is_new else _HUNG_S)
    while not server.answers:
        is_dead = not server.process.is_alive
        if is_dead or time.monotonic() > give_up:
            if server.is_new:
                raise DdlflowError(_why_not(server, is_dead))
            server = _replaced(server)
            give_up = time.monotonic() + _START_S
        time.sleep(_POLL_S)
    return server


def running_server(folder: Path | None = None) -> PrefectServer | None:
    """The shared server, if its process lives."""
    folder = folder or _folder()
    try:
        recorded = json.loads((folder / "server.json").read_text())
        process, address = owner_of(recorded["process"]), str(recorded["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if process is None or not process.is_here or not process.is_alive:
        return None
    return PrefectServer(address, process, folder, is_new=False)


def num_users(folder: Path) -> int:
    """Commands that use the server of a folder; what those left that were killed is removed."""
    found = 0
    for path in (folder / "users").glob("*"):
        owner = owner_of(path.name.partition("_")[2])
        if owner is not None and owner.is_here and owner.is_alive:
            found += 1
        else:
            path.unlink(missing_ok=True)
    return found


def idle_s() -> float:
    """How long a server stays without a command; in CI it ends with the last one.

    Raises:
        DdlflowError: the variable holds no number.
    """
    given = os.environ.get(IDLE_VARIABLE, "0" if os.environ.get("CI") else str(IDLE_S))
    try:
        return float(given)
    except ValueError:
        raise DdlflowError(
            f"{IDLE_VARIABLE} is {given!r}; expected seconds, such as 600. Unset it for {IDLE_S:g}."
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with the files of a folder."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def home() -> Path:
    """Prefect's own folder."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser().absolute()


def _folder() -> Path:
    """Of the server that fits this command: its machine, its versions, its settings of Prefect."""
    ours = this_owner()
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("PREFECT_") and name != "PREFECT_API_URL"
    )
    parts = [ours.boot, ours.space, sys.executable, metadata.version("prefect")]
    identity = json.dumps([*parts, ddlflow.__version__, settings])
    return home() / "ddlflow" / hashlib.sha256(identity.encode()).hexdigest()[:16]


def _start(folder: Path) -> PrefectServer:
    """Starts a server; called with the lock."""
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_ITS_OWN}
    with socket.create_server((_HOST, 0)) as listener, (folder / "server.log").open("wb") as log:
        address = f"http://{_HOST}:{listener.getsockname()[1]}"
        number = str(listener.fileno())
        # Where the page in the browser asks; it would ask port 4200 otherwise.
        environment["PREFECT_UI_API_URL"] = f"{address}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "ddlflow.flow.server_process", number, folder, str(idle_s())],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(listener.fileno(),),
            start_new_session=True,  # Ctrl-C of this command is not the server's
        )
    process.returncode = 0  # it outlives us: nobody is to wait for it, or to warn that we did not
    owner = owner_of_process(process.pid)
    path = folder / "server.json"
    path.with_suffix(".new").write_text(json.dumps({"address": address, "process": owner.name}))
    path.with_suffix(".new").replace(path)
    return PrefectServer(address, owner, folder, is_new=True)


def _replaced(server: PrefectServer) -> PrefectServer:
    """A server in the place of one that died or hangs, be it another command's."""
    with locked(server.folder):
        found = running_server(server.folder)
        if found is not None and found.process != server.process:
            return found
        if server.process.is_alive:
            with suppress(ProcessLookupError):
                os.kill(server.process.pid, signal.SIGKILL)
        return _start(server.folder)


def _why_not(server: PrefectServer, is_dead: bool) -> str:
    log = server.folder / "server.log"
    with suppress(OSError):
        words = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
        what = f"ended as it started ({last})" if is_dead else f"does not answer in {_START_S:g} s"
        return (
            f"Prefect's server {what}. Look into {log}, or start one with `prefect server start` "
            "and set PREFECT_API_URL to its address."
        )
    return f"Prefect's server did not start, and {log} cannot be read."
