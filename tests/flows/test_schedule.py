"""A schedule fires: a real Prefect server, a deployment by cron and one by interval."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.runs.project import lay_out

PATIENCE_S = 420.0

# What a user writes to serve a pipeline; each schedule fires once within the test's time.
SERVE = """
import sys
from datetime import datetime, timedelta

from prefect import serve
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron, Interval

if __name__ == "__main__":
    soon = datetime.fromisoformat(sys.argv[1])
    flow = load_flow_from_entrypoint("flows/pipeline.py:pipeline")
    what = {"pipeline": "small", "on": "local"}
    serve(
        flow.to_deployment(
            "by-cron",
            schedule=Cron(f"{soon.minute} {soon.hour} * * *", timezone="UTC"),
            parameters=what,
        ),
        flow.to_deployment(
            "by-interval",
            schedule=Interval(timedelta(hours=1), anchor_date=soon, timezone="UTC"),
            parameters=what,
        ),
        limit=1,
    )
"""


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Prefect server of its own; gives the environment that leads to it."""
    port = _free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # How often schedules are looked through, and runs asked for: seconds, not a test's time.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (tmp_path / "server.log").open("w") as log:
        started = subprocess.Popen(
            [*command, "--port", str(port), "--no-ui"], env=environment, stdout=log, stderr=log
        )
        try:
            _wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/api/health").is_success)
            yield environment
        finally:
            started.terminate()
            started.wait(30)


def _wait_for(is_so: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if is_so():
                return
        except httpx.HTTPError:
            pass
        time.sleep(1.0)
    raise AssertionError(f"not within {PATIENCE_S:.0f} s")


@pytest.mark.timeout(900)
def test_runs_by_cron_and_by_interval_are_made_and_complete(
    tmp_path: Path, server: dict[str, str]
) -> None:
    project = tmp_path / "project"
    lay_out(project)
    random = np.random.default_rng(0)
    a = random.normal(size=300)
    pq.write_table(pa.table({"a": a, "y": (a > 0).astype(int)}), project / "data/t.parquet")
    pipeline = {
        "name": "small",
        "data": {"source": "t.parquet", "label": "y"},
        "model": {"use": "linear"},
        "train": {"objective": "binary", "epochs": 1, "batch_rows": 100},
    }
    (project / "pipelines/small.yaml").write_text(yaml.safe_dump(pipeline))
    site = yaml.safe_load((project / "conf/local.yaml").read_text())
    site["engine"] = {"use": "local", "workers": 1}
    (project / "conf/local.yaml").write_text(yaml.safe_dump(site))
    (project / "serve.py").write_text(SERVE)

    api = httpx.Client(base_url=server["PREFECT_API_URL"])  # one: each reads all certificates
    # A whole minute, so that cron and interval mean the same; far enough for a busy machine.
    soon = (datetime.now(UTC) + timedelta(seconds=135)).replace(second=0, microsecond=0)

    def runs() -> dict[str, dict[str, Any]]:
        """The scheduler's flow runs for that minute, by deployment."""
        deployments = api.post("/deployments/filter", json={}).json()
        names = {one["id"]: one["name"] for one in deployments}
        found = api.post("/flow_runs/filter", json={"limit": 100}).json()
        return {
            names[run["deployment_id"]]: run
            for run in found
            if run["auto_scheduled"] and datetime.fromisoformat(run["expected_start_time"]) == soon
        }

    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "serve.log").open("w"))
        served = subprocess.Popen(
            [sys.executable, "serve.py", soon.isoformat()],
            cwd=project,
            env=server,
            stdout=log,
            stderr=log,
        )
        stack.enter_context(api)
        stack.callback(served.wait, 60)
        stack.callback(served.terminate)
        ended = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        _wait_for(
            lambda: len(runs()) == 2 and all(run["state_type"] in ended for run in runs().values())
        )
        states = {name: run["state_type"] for name, run in runs().items()}
    said = (tmp_path / "serve.log").read_text()[-2000:]
    assert states == {"by-cron": "COMPLETED", "by-interval": "COMPLETED"}, said
    models = list((project / ".ddlflow/train").glob("*/model/model.json"))
    assert len(models) == 1  # the second run found what the first had done
