"""What all tests share: one torch thread, and homes of Prefect and MLflow that are nobody's."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hosts import OpenHosts, open_hosts
from hypothesis import HealthCheck, settings
from object_server import ObjectServer, serving

from ddlflow.store.object_client import forget_clients
from ddlflow.store.store import open_store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# A busy machine is no error of an example's. `make test-long` looks further than `make test`.
for _profile, _examples in (("short", 25), ("long", 200)):
    settings.register_profile(
        _profile,
        max_examples=_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# Files by the start of their names, those that take longest first (durations.txt tells).
LONG = (
    *("flows/test_schedule", "flows/", "chaos/", "test_real_flights", "test_small_tables"),
    *(
        "test_redact",
        "test_cases",
        "history/test_reproduce",
        "engines/",
        "runs/test_search",
        "store/test_owner",
    ),
)
WHOLE_RUN, SLOWEST = 500, 40  # reports of a run that is kept, and lines of it

# Set before anything imports Prefect, and inherited by every command that a test starts.
_HOME = tempfile.mkdtemp(prefix="ddlflow-tests-")
os.environ["PREFECT_HOME"] = str(Path(_HOME) / "prefect")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
# Of each Java process: it starts in half the time, and many small jobs are all it does.
os.environ["JDK_JAVA_OPTIONS"] = (
    "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Duser.timezone=UTC "
    f"-Dderby.system.home={_HOME} -Dderby.stream.error.file={_HOME}/derby.log"
)
os.environ["DDLFLOW_PREFECT_IDLE_S"] = "20"  # a server that commands of tests share goes soon
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long come first: a process that gets one last would end alone."""
    folder = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix()
        return next((k for k, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tests are many small things: threads cost them more than they give."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def command_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``ddlflow`` in this process, which has imported all; not what starts a flow of Prefect.

    Gives the exit status, standard output and standard error.
    """

    def run(*arguments: str) -> tuple[int, str, str]:
        from ddlflow.cli import app

        monkeypatch.setattr(sys, "argv", ["ddlflow", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        status = ended.value.code
        assert isinstance(status, int)
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3 server."""
    with serving(tmp_path_factory.mktemp("objects") / "weed") as server:
        yield server


@pytest.fixture
def bucket(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A URL of the server under which nothing is, for this process and those that it starts."""
    for name, value in object_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DDLFLOW_CACHE", str(tmp_path / "cache"))
    open_store("s3://ddlflow-tests").write("made", b"")  # which makes the bucket
    yield f"s3://ddlflow-tests/{uuid.uuid4().hex}"
    forget_clients()


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SparkSession]":
    """A Spark session for the tests of a file; the next one's starts in the same Java process."""
    from spark_session import session_in

    with session_in(tmp_path_factory.mktemp("spark")) as session:
        yield session


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; a test that asks for it skips where there is none."""
    folder = os.environ.get("DDLFLOW_REAL_DATA")
    if not folder:
        pytest.skip("DDLFLOW_REAL_DATA is not set: it names the folder of real data sets")
    return Path(folder)


@pytest.fixture
def hosts() -> Iterator[OpenHosts]:
    """Opens hosts in this machine, with process numbers, names and mounts of their own."""
    with ExitStack() as stack:
        yield lambda *names, network=False: stack.enter_context(open_hosts(*names, network=network))


# ---- Prefect ------------------------------------------------------------------------------------

SERVER_PATIENCE_S = 180.0  # for its first start on a busy machine
_SERVERS: list["subprocess.Popen[bytes]"] = []  # forgotten ones would warn that they still run


@pytest.fixture
def prefect_server(_prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """One Prefect server for all that ask for it: commands need not start one each."""
    monkeypatch.setenv("PREFECT_API_URL", _prefect_url)
    return _prefect_url


@pytest.fixture
def prefect_database(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that server's database, beside which its journal lies."""
    return _of_all_processes(tmp_path_factory) / "prefect/prefect.db"


def _of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one test run (pytest-xdist) share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def _prefect_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its address. Processes of one test run share it: the first one starts it."""
    folder = _of_all_processes(tmp_path_factory)
    told = folder / "prefect-url"
    with (folder / "prefect-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            # It ends when the process does that all of them come from.
            owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            told.write_text(_start_prefect(folder, owner))
        return told.read_text()


def _start_prefect(folder: Path, owner: int) -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    script = Path(__file__).with_name("prefect_server.py")
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    with (folder / "prefect.log").open("w") as log:
        _SERVERS.append(
            subprocess.Popen(
                [sys.executable, str(script), str(port), str(owner)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
    until = time.monotonic() + SERVER_PATIENCE_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"Prefect did not start: {(folder / 'prefect.log').read_text()[-2000:]}")


# ---- where the time goes ------------------------------------------------------------------------


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Keeps the slowest tests of the last whole run in `durations.txt`."""
    reports = [
        report
        for found in terminalreporter.stats.values()
        for report in found
        if isinstance(report, pytest.TestReport)
    ]
    if len(reports) < WHOLE_RUN or hasattr(config, "workerinput"):
        return
    reports.sort(key=lambda report: -report.duration)
    lines = [f"{r.duration:8.2f} s {r.when:8} {r.nodeid}\n" for r in reports[:SLOWEST]]
    (config.rootpath / "durations.txt").write_text("".join(lines))
