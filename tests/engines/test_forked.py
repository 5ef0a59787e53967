"""Processes that a fork server forks: as fresh as ones that were started, and never left behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddlflow.engines.fork_owner import SWITCH, ForkServers, Offer, key_of
from ddlflow.engines.fork_server import Order
from ddlflow.engines.forked import Forked
from ddlflow.train.rank import PRELOAD

TELLS = """
import json, os, sys
own = int(sys.argv[sys.argv.index("--own") + 1])
def tell(**values):
    os.write(own, json.dumps(values).encode() + b"\\n")
"""


class Asked:
    """A forked process with our ends of its pipes."""

    def __init__(
        self,
        offer: Offer,
        module: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        stdin, self.stdin = os.pipe()
        own, of_it = os.pipe()
        self.log = folder / "log"
        with self.log.open("wb") as log:
            variables = dict(os.environ if environment is None else environment)
            order = Order(module, ("a", "b"), "--own", str(folder), variables)
            self.process = Forked(offer, order, (stdin, log.fileno(), of_it))
        os.close(stdin)
        os.close(of_it)
        self.own = os.fdopen(own)

    def hear(self) -> Any:
        return json.loads(self.own.readline())

    def end(self) -> int:
        returncode = self.process.wait(60)
        os.close(self.stdin)
        self.own.close()
        return returncode


@pytest.fixture
def code(tmp_path: Path) -> Any:
    """Writes a module of the user's that has `tell`; returns its name."""

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(TELLS + textwrap.dedent(text))
        return name

    return write


@contextmanager
def served(
    *modules: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[ForkServers, Offer]]:
    servers = ForkServers()
    try:
        offer = servers.offer(dict(os.environ) if environment is None else environment, modules)
        assert offer is not None
        yield servers, offer
    finally:
        servers.close()


def gone(*pids: int) -> bool:
    give_up = time.monotonic() + 20
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


WAITS = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
tell(pid=os.getpid(), child=child.pid)
time.sleep(600)
"""


def test_a_fork_is_as_a_fresh_interpreter_and_sees_what_a_start_would(
    code: Any, tmp_path: Path
) -> None:
    text = """
    import random, threading, numpy, pathlib
    tell(argv=sys.argv[1:3], name=__name__, cwd=os.getcwd(), path=sys.path[0],
         line=sys.stdin.readline(), threads=len(os.listdir("/proc/self/task")),
         group=os.getpgid(0) == os.getpid(), numpy=numpy.random.random(), random=random.random(),
         open=[int(f.name) for f in pathlib.Path("/proc/self/fd").iterdir() if f.exists()], own=own,
         environment=dict(os.environ), value={value}, imported="numpy" in sys.modules)
    print("a user's print")
    sys.exit({value})
    """
    environment = dict(os.environ) | {"GIVEN": "here"}
    with served("numpy", environment=environment) as (_, offer):
        found = []
        for value in (3, 4):  # the code on the disk changes between two jobs
            name = code("users", text.replace("{value}", str(value)))
            asked = Asked(offer, name, tmp_path, environment)
            os.write(asked.stdin, b"a line\n")
            found.append(asked.hear())
            assert asked.end() == value
            assert asked.log.read_text() == "a user's print\n"
    first, second = found
    assert (first["value"], second["value"]) == (3, 4)
    assert first["argv"] == ["a", "b"]
    assert (first["name"], first["cwd"], first["path"]) == ("__main__", *[str(tmp_path)] * 2)
    assert first["line"] == "a line\n"
    assert first["threads"] == 1
    assert first["group"]
    assert sorted(first["open"]) == [0, 1, 2, first["own"]]
    assert first["environment"] == environment
    draws = [one[name] for one in found for name in ("numpy", "random")] + [random.random()]
    assert len(set(draws)) == len(draws)


def test_what_ranks_are_forked_from_has_no_thread_and_no_gpu(code: Any, tmp_path: Path) -> None:
    name = code("looks", "import torch; tell(cuda=torch.cuda.is_initialized(), ours='looks')")
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with served(*PRELOAD, environment=dict(os.environ) | one) as (_, offer):
        asked = Asked(offer, name, tmp_path)
        assert asked.hear()["cuda"] is False
        assert asked.end() == 0
        (server,) = [
            child
            for child in psutil.Process().children()
            if PRELOAD[0] in child.cmdline() and "ddlflow.engines.fork_server" in child.cmdline()
        ]
        assert server.num_threads() == 1


def test_a_killed_fork_takes_what_it_started_with_it(code: Any, tmp_path: Path) -> None:
    with served("json") as (_, offer):
        for how in (Forked.kill_group, lambda process: process.send_signal(signal.SIGTERM)):
            asked = Asked(offer, code("waits", WAITS), tmp_path)
            told = asked.hear()
            assert told["pid"] == asked.process.pid
            assert asked.process.poll() is None
            how(asked.process)
            assert asked.end() in {-signal.SIGKILL, -signal.SIGTERM}
            assert gone(told["child"])


def test_forks_end_with_their_client_their_server_and_its_owner(code: Any, tmp_path: Path) -> None:
    with served("json") as (servers, offer):
        asked = Asked(offer, code("waits", WAITS), tmp_path)
        told = asked.hear()
        asked.process._connection.close()  # as the end of the client's process does
        assert gone(*told.values())
        asked.end()

        asked = Asked(offer, "waits", tmp_path)
        told = asked.hear()
        servers.close()
        assert servers.offer(dict(os.environ), ["json"]) is None
        with served("calendar"):  # the first one is no longer the last that was asked for
            assert asked.end() == -signal.SIGKILL
            assert gone(*told.values())
            assert not Path(offer.address).parent.exists()

    with served("json") as (servers, offer):
        asked = Asked(offer, "waits", tmp_path)
        told = asked.hear()
        server = psutil.Process(told["pid"]).ppid()
        os.kill(server, signal.SIGKILL)
        assert asked.end() == -signal.SIGKILL
        assert not asked.process.lost
        assert asked.process.orphaned
        assert gone(server, *told.values())
        again = servers.offer(dict(os.environ), ["json"])
        assert again is not None
        assert not Path(offer.address).exists()
        assert Asked(again, code("ends", "tell(a=1)"), tmp_path).end() == 0

    owner = """
    import time
    from ddlflow.engines.fork_owner import ForkServers
    offer = ForkServers().offer(dict(os.environ), ["json"])
    tell(address=offer.address, key=offer.key)
    time.sleep(600)
    """
    path = tmp_path / f"{code('owns', owner)}.py"
    own, of_it = os.pipe()
    command = [sys.executable, str(path), "--own", str(of_it)]
    with subprocess.Popen(command, pass_fds=(of_it,)) as process, os.fdopen(own) as told_by_owner:
        asked = Asked(Offer(**json.loads(told_by_owner.readline())), "waits", tmp_path)
        told = asked.hear()
        process.kill()
        assert asked.end() == -signal.SIGKILL
        assert gone(*told.values())
    os.close(of_it)


def test_a_server_that_cannot_import_forks_nothing(code: Any, tmp_path: Path) -> None:
    with served("no_such_module") as (servers, offer):
        asked = Asked(offer, code("waits", WAITS), tmp_path)
        asked.end()
        assert asked.process.lost
        give_up = time.monotonic() + 20  # its process ends a moment after its socket
        while servers.offer(dict(os.environ), ["no_such_module"]) is not None:
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_what_was_ended_before_it_came_does_not_come(code: Any, tmp_path: Path) -> None:
    slow = "import time, pathlib; time.sleep(1); pathlib.Path('done').touch()"
    (tmp_path / "slow.py").write_text(slow)
    mark = code("marks", "import pathlib; pathlib.Path('marked').touch()")
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with served("slow", environment=environment) as (_, offer):
            first, second = (Asked(offer, mark, tmp_path) for _ in range(2))
            first.process.send_signal(signal.SIGTERM)
            assert first.process.pid is None
            assert first.end() == -signal.SIGTERM
            assert second.process.poll() is None
            second.process.kill_group()
            assert second.end() == -signal.SIGKILL
            third = Asked(offer, "slow", tmp_path)
            assert third.end() == 0
    assert (tmp_path / "done").exists()
    assert not (tmp_path / "marked").exists()


def test_one_server_an_environment_and_none_where_none_is_wanted() -> None:
    servers = ForkServers()
    here = dict(os.environ)
    try:
        first = servers.offer(here, ["json"])
        assert first is not None
        assert servers.offer(dict(reversed(here.items())), ["json"]) == first
        other = servers.offer(here | {"OMP_NUM_THREADS": "7"}, ["json"])
        assert other is not None
        assert other.key != first.key
        assert servers.offer(here, []) is None
        assert servers.offer(here | {SWITCH: "0"}, ["json"]) is None
        assert Path(first.address).parent.stat().st_mode & 0o077 == 0  # nobody else's to use
    finally:
        servers.close()


def test_engines_of_a_process_share_a_server_and_leave_the_last_one() -> None:
    here = dict(os.environ)
    first, second = ForkServers(), ForkServers()
    offers = [servers.offer(here, ["json"]) for servers in (first, second)]
    assert offers[0] == offers[1] is not None
    other = first.offer(here | {"OMP_NUM_THREADS": "7"}, ["json"])
    assert other is not None
    first.close()
    alive = [Path(offer.address).exists() for offer in (offers[1], other)]
    assert alive == [True, True]  # the second's, and the last
    second.close()
    alive = [Path(offer.address).exists() for offer in (offers[1], other)]
    assert alive == [False, True]
    with served("json", environment=here | {"OMP_NUM_THREADS": "7"}) as (_, offer):
        assert offer == other


def test_a_variable_that_no_import_reads_needs_no_other_server(code: Any, tmp_path: Path) -> None:
    before = dict(os.environ) | {"MLFLOW_TRACKING_URI": "a", "PREFECT_API_URL": "b"}
    after = dict(os.environ) | {"MLFLOW_TRACKING_URI": "c"}
    with served("json", environment=before) as (servers, offer):
        assert servers.offer(after, ["json"]) == offer
        name = code("reads", "tell(os=dict(os.environ), c=[os.popen('env -0').read()])")
        asked = Asked(offer, name, tmp_path, after)
        told = asked.hear()
        assert asked.end() == 0
        assert told["os"] == after
        of_c = dict(entry.split("=", 1) for entry in told["c"][0].split("\0") if entry)
        assert {k: v for k, v in of_c.items() if k not in {"_", "PWD", "SHLVL", "OLDPWD"}} == {
            k: v for k, v in after.items() if k not in {"_", "PWD", "SHLVL", "OLDPWD"}
        }
        other = servers.offer(before | {"OF_A_USER": "1"}, ["json"])
        assert other is not None
        assert other.key != offer.key


def test_relative_folders_of_python_count_from_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for path in ("one", "/one"):
        for folder in (tmp_path, Path(__file__).parent):
            monkeypatch.chdir(folder)
            keys.append(key_of({"PYTHONPATH": path}, ["json"]))
    assert len(set(keys[:2])) == 2
    assert len(set(keys[2:])) == 1


def test_a_fork_in_another_folder_imports_what_a_fresh_interpreter_would(
    code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, other = tmp_path / "began", tmp_path / "other"
    for folder in (began, other):
        folder.mkdir()
    name = code("looks", "import colorsys; tell(file=colorsys.__file__, pid=os.getpid())")
    for folder in (began, other):
        shutil.copy(tmp_path / f"{name}.py", folder)

    def look(offer: Offer, folder: Path) -> str:
        asked = Asked(offer, name, folder)
        told = asked.hear()
        assert asked.end() == 0
        assert told["pid"] == asked.process.pid
        return str(told["file"])

    monkeypatch.chdir(began)
    with served("colorsys") as (_, offer):
        here = [look(offer, folder) for folder in (began, other)]
        assert len(set(here)) == 1
        (other / "colorsys.py").touch()
        assert look(offer, began) == here[0]
        assert look(offer, other) == str(other / "colorsys.py")
    (began / "colorsys.py").touch()
    (other / "colorsys.py").unlink()
    environment = dict(os.environ) | {"ANOTHER": "1"}
    with served("colorsys", environment=environment) as (_, offer):
        assert look(offer, began) == str(began / "colorsys.py")
        assert look(offer, other) == here[0]


def test_threads_that_ask_at_once_get_one_server() -> None:
    servers = [ForkServers() for _ in range(8)]
    environment = dict(os.environ) | {"AT_ONCE": "1"}
    with ThreadPoolExecutor(len(servers)) as pool:
        offers = list(pool.map(lambda one: one.offer(environment, ["json"]), servers))
    assert offers[0] is not None
    assert len(set(offers)) == 1
    for one in servers:
        one.close()


def test_a_fork_of_the_owner_has_servers_of_its_own(tmp_path: Path) -> None:
    program = """
    import os, sys, time
    from ddlflow.engines.fork_owner import ForkServers
    servers = ForkServers()
    first = servers.offer(dict(os.environ), ["json"])
    ours, its = os.pipe()
    if os.fork() == 0:
        second = servers.offer(dict(os.environ), ["json"])
        os.write(its, second.address.encode())
        time.sleep(600)
    print(os.read(ours, 4096).decode(), first.address, flush=True)
    os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as it:
        assert it.stdout is not None
        second, first = it.stdout.readline().split()
        assert second != first
        give_up = time.monotonic() + 20
        while Path(first).exists():  # though the fork lives
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert Path(second).exists()
        os.killpg(it.pid, signal.SIGKILL)
    while Path(second).exists():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_servers_end_as_their_process_does() -> None:
    program = """
    import os, time, pathlib
    from ddlflow.engines.fork_owner import ForkServers
    for modules in (["json"], ["calendar"]):
        servers = ForkServers()
        offer = servers.offer(dict(os.environ), modules)
        print(offer.address)
    while not offer.is_ready: time.sleep(0.01)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [Path(address).parent.exists() for address in out.split()] == [False, False]
