"""Opening engine dask where something is wrong: one clear line, in time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from ddlflow.engines import GangJob, open_engine
from ddlflow.engines.dask_address import version_problem
from ddlflow.errors import EngineError
from ddlflow.spec.site import Site


def site(address: str, **more: object) -> Site:
    return Site(engine={"use": "dask", "address": address, **more})


def test_an_address_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    with pytest.raises(EngineError, match=f"No Dask scheduler answers at {address} .*") as caught:
        open_engine(site(address), slots=1, threads=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="No Dask scheduler answers at nonsense://x"):
        open_engine(site("nonsense://x"), slots=1, threads=1)


def test_workers_that_are_missing_or_lack_ddlflow(tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        address = cluster.scheduler_address
        wanted = site(address, workers=2, start_timeout_s=0.5)
        with pytest.raises(EngineError, match=r"0 workers came .* 2 were asked for.*dask worker"):
            open_engine(wanted, slots=1, threads=1)
        # A folder that hides the installed ddlflow stands for an environment without it.
        (tmp_path / "ddlflow").mkdir()
        text = "raise ModuleNotFoundError(\"No module named 'ddlflow'\")"
        (tmp_path / "ddlflow" / "__init__.py").write_text(text)
        worker = subprocess.Popen(
            [sys.executable, "-m", "dask", "worker", address, "--no-nanny", "--no-dashboard"],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        try:
            with pytest.raises(EngineError, match=r"cannot run ddlflow .*Install") as caught:
                open_engine(site(address), slots=1, threads=1)
            assert "No module named 'ddlflow'" in str(caught.value).replace("\\", "")
            assert "\n" not in str(caught.value)
        finally:
            worker.kill()
            worker.wait()


def test_a_worker_that_is_stopped_is_left_out(tmp_path: Path) -> None:
    """Dask itself would keep it for five minutes."""
    job = GangJob("ddlflow_no_such_module", {}, 1, str(tmp_path), {}, (), 30.0)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        open_engine(site(cluster.scheduler_address), slots=2, threads=1) as engine,
    ):
        assert engine.available() == 2
        stopped = psutil.Process(next(iter(cluster.workers.values())).pid)
        stopped.suspend()
        try:
            assert engine.available() == 1
            failure = engine.gang(job, 1).failure
            assert failure is not None
            assert failure.kind == "Exited"  # it ran, on the other one
            with open_engine(site(cluster.scheduler_address), slots=2, threads=1) as second:
                assert second.slots == 1
        finally:
            stopped.resume()


def test_versions_that_differ_are_named() -> None:
    ours = {"python": "3.11", "dask": "2026.7.1", "distributed": "2026.7.1", "ddlflow": "0.1.0"}
    assert version_problem({"client": ours, "tcp://a": dict(ours)}) is None
    theirs = ours | {"dask": "2025.1.0"}
    problem = version_problem({"client": ours, "tcp://a": ours, "tcp://b": theirs})
    assert problem is not None
    assert problem.startswith("tcp://b has dask 2025.1.0, this side has dask 2026.7.1.")
