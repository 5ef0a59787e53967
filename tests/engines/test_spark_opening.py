"""Engine spark as it opens: nobody there, no Java, the user's own session, what Kubernetes gets."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddlflow.engines import GangEvent, GangJob, open_engine
from ddlflow.engines.given import using
from ddlflow.engines.spark_session import settings
from ddlflow.errors import EngineError
from ddlflow.spec.site import EngineSection, Site

RANKS = str(Path(__file__).parent / "ranks")
sys.path.insert(0, RANKS)

import data_work  # noqa: E402 - it is on the path only now


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., GangJob]:
    def make(module: str, **payload: Any) -> GangJob:
        logs = str(tmp_path / "logs")
        return GangJob(module, payload, 1, logs, {"GIVEN": "x"}, (RANKS,), 60.0, preload=("json",))

    return make


@pytest.mark.parametrize("scheme", ["spark", "sc"])
def test_nobody_there_is_one_line_soon(scheme: str) -> None:
    nobody = EngineSection(
        use="spark", address=f"{scheme}://127.0.0.1:{free_port()}", start_timeout_s=5
    )
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        open_engine(Site(engine=nobody), slots=1, threads=1)
    assert "\n" not in str(caught.value)
    assert "engine.address" in str(caught.value)
    assert time.monotonic() - began < 60  # not Spark's own minutes


def test_no_java_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EngineError, match="Spark needs Java 17 or newer"):
        open_engine(Site(engine={"use": "spark"}), slots=1, threads=1)


def test_a_java_process_that_is_killed_is_one_line_and_the_next_one_works(
    job: Callable[..., GangJob], capfd: pytest.CaptureFixture[str]
) -> None:
    def kill(event: GangEvent) -> None:
        for child in psutil.Process().children(recursive=True):
            if child.name() == "java":
                child.kill()

    site = Site(engine={"use": "spark"})
    with open_engine(site, slots=2, threads=1) as opened:
        failure = opened.gang(job("fail"), 2, on_event=kill).failure
        assert failure is not None
        assert failure.kind == "WorkerLost"
        with pytest.raises(EngineError, match="Run the command again"):
            list(opened.map(data_work.square, range(5)))
    assert "Traceback" not in "".join(capfd.readouterr())
    with open_engine(site, slots=2, threads=1) as opened:
        assert list(opened.map(data_work.square, range(5))) == [0, 1, 4, 9, 16]


def test_a_given_session_stays_open_and_as_it_was(spark: Any, job: Callable[..., GangJob]) -> None:
    before = dict(spark.conf.getAll)
    with using(spark), open_engine(Site(engine={"use": "spark"}), slots=9, threads=1) as opened:
        assert opened.slots == 2
        assert list(opened.map(data_work.square, range(5))) == [0, 1, 4, 9, 16]
        assert opened.gang(job("meet"), 2).values == [[0, 1], [1]]
    assert dict(spark.conf.getAll) == before
    assert spark.range(3).count() == 3


def test_kubernetes_gets_what_ranks_need() -> None:
    section = EngineSection(
        use="spark",
        address="k8s://https://h:6443",
        conf={"spark.executor.instances": 4, "spark.kubernetes.container.image": "ours:1"},
    )
    found = settings(section)
    assert found["spark.executor.instances"] == "4"
    assert found["spark.kubernetes.container.image"] == "ours:1"
    assert found["spark.dynamicAllocation.enabled"] == "false"
    assert found["spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures"] == "5"
