"""Engine spark where its workers are elsewhere: a real standalone cluster, a real Connect server.

The whole contract runs on a session of this machine (test_contract.py).
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyspark
import pytest

from ddlflow.engines import Engine, GangEvent, GangJob, open_engine
from ddlflow.errors import EngineError, SpecError
from ddlflow.rank_protocol import RankSaid
from ddlflow.spec.site import Site

RANKS = str(Path(__file__).parent / "ranks")
sys.path.insert(0, RANKS)

import data_work  # noqa: E402 - it is on the path only now

HOME = Path(pyspark.__file__).parent
SLOTS = 2
EXECUTOR = "CoarseGrainedExecutorBackend"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def somebody_at(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(folder: Path, *commands: list[str], answers: int) -> Iterator[None]:
    """Spark's own programs, as an administrator starts them, once the first one answers."""
    environment = os.environ | {
        "SPARK_HOME": str(HOME),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_NO_DAEMONIZE": "1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": RANKS,
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as log:
            for command in commands:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
                )
                give_up = time.monotonic() + 90
                while not somebody_at(answers):
                    assert time.monotonic() < give_up, (folder / "log").read_text()
                    time.sleep(0.1)
        yield
    finally:
        family = [p for one in processes for p in psutil.Process(one.pid).children(True)]
        for process in processes:
            process.kill()
            process.wait()
        for process in family:
            if process.is_running():
                process.kill()


def standalone(folder: Path, port: int) -> list[list[str]]:
    script = str(HOME / "bin" / "spark-class")
    at = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    master = [script, f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port)]
    own = ["--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g"]
    workers = [
        [script, f"{deploy}.worker.Worker", *own, "--work-dir", str(folder / name), at]
        for name in ("one", "two")
    ]
    return [[*master, "--webui-port", "0"], *workers]


def connect_server(port: int) -> list[str]:
    return [
        str(HOME / "bin" / "spark-submit"),
        *("--master", f"local[{SLOTS},4]", "--conf", "spark.ui.enabled=false"),
        *("--conf", f"spark.connect.grpc.binding.port={port}"),
        *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"),
    ]


@pytest.fixture(scope="module", params=["standalone", "connect"])
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("spark"), free_port()
    if request.param == "standalone":
        with started(folder, *standalone(folder, port), answers=port):
            yield f"spark://127.0.0.1:{port}"
    else:
        with started(folder, connect_server(port), answers=port):
            yield f"sc://127.0.0.1:{port}"


def site(address: str, **conf: Any) -> Site:
    own = {} if address.startswith("sc:") else {"spark.executor.memory": "512m"}
    return Site(engine={"use": "spark", "address": address, "conf": own | conf, "workers": SLOTS})


@pytest.fixture(scope="module")
def engine(address: str) -> Iterator[Engine]:
    with open_engine(site(address), slots=1, threads=1) as opened:
        yield opened


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., GangJob]:
    def make(module: str, **payload: Any) -> GangJob:
        logs = str(tmp_path / "logs")
        return GangJob(module, payload, 1, logs, {"GIVEN": "x"}, (RANKS,), 60.0, preload=("json",))

    return make


def executors() -> list[psutil.Process]:
    found = [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in found if any(EXECUTOR in part for part in p.cmdline())]


def is_ready(heard: GangEvent) -> bool:
    return isinstance(heard.event, RankSaid) and heard.event.name == "ready"


def test_work_is_done_and_a_failure_is_told(engine: Engine, tmp_path: Path) -> None:
    assert engine.slots == SLOTS
    assert list(engine.map(data_work.square, range(20))) == [x * x for x in range(20)]
    with pytest.raises(ValueError, match="three is not allowed"):
        list(engine.map(data_work.fail_on_three, range(10)))
    items = [(str(tmp_path), x) for x in range(8)]
    assert list(engine.map(data_work.die_once, items)) == list(range(8))
    assert len(set(engine.ask(data_work.where))) == SLOTS


def test_ranks_meet_and_are_heard(engine: Engine, job: Callable[..., GangJob]) -> None:
    events: list[GangEvent] = []
    result = engine.gang(job("meet"), SLOTS, on_event=events.append)
    assert result.values == [[0, 1], [1]]
    assert sorted(event.rank for event in events if is_ready(event)) == [0, 1]
    assert {event.host for event in events} == {"127.0.0.1"}
    failure = engine.gang(job("fail", how="raise", rank=1), SLOTS).failure
    assert failure is not None
    assert (failure.rank, failure.kind, failure.message) == (
        1,
        "ValueError",
        "the third row is odd",
    )


def test_too_few_slots_are_told_at_once(engine: Engine, job: Callable[..., GangJob]) -> None:
    with pytest.raises(EngineError, match=r"3 ranks .* engine\.workers to 3"):
        engine.gang(job("meet"), 3)


def test_a_stop_reaches_the_ranks(
    engine: Engine, job: Callable[..., GangJob], tmp_path: Path
) -> None:
    stop = threading.Event()
    ready: set[int] = set()

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            ready.add(event.rank)
        if len(ready) == SLOTS:
            stop.set()

    flag = str(tmp_path / "flag")
    result = engine.gang(job("stop", flag=flag), SLOTS, on_event=collect, stop=stop)
    assert result.stopped
    assert result.failure is None


def test_a_killed_executor_loses_no_item_and_no_gang(
    engine: Engine, job: Callable[..., GangJob], tmp_path: Path
) -> None:
    """kill -9 of the Java process; over Connect its own process is the only executor."""
    if engine.describe().startswith("spark connect"):
        pytest.skip("the Connect server is its own executor: killed, it is gone")
    ready: set[int] = set()

    def kill(event: GangEvent) -> None:
        if is_ready(event):
            ready.add(event.rank)
            if len(ready) == SLOTS:
                executors()[0].kill()

    failure = engine.gang(job("fail"), SLOTS, on_event=kill).failure
    assert failure is not None
    assert failure.kind == "WorkerLost"
    assert engine.gang(job("meet"), SLOTS).values == [[0, 1], [1]]  # once it has come back

    results = engine.map(data_work.slow_mark, [(str(tmp_path), x) for x in range(12)])
    assert next(results) == 0
    executors()[0].kill()
    assert list(results) == list(range(1, 12))


def test_executors_that_come_as_jobs_do_are_refused(address: str) -> None:
    if address.startswith("sc:"):
        pytest.skip("a Connect server's own setting")
    growing = site(address, **{"spark.dynamicAllocation.enabled": True})
    with pytest.raises(SpecError, match=r"spark\.dynamicAllocation\.enabled is true"):
        open_engine(growing, slots=1, threads=1)
