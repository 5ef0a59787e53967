"""Two hosts of one name share a storage: who lives there, who is lost, and what is left alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from hosts import Host, OpenHosts

from ddlflow.store import owner
from ddlflow.store.owner import Owner, owner_of, state_of, this_owner
from ddlflow.tracking import spool as spool_module
from ddlflow.tracking.read import Reader
from ddlflow.tracking.records import MetricsLogged, RunBegan
from ddlflow.tracking.spool import Spool

# argv: the storage, MLflow's URI. A command at work: a record, a scratch folder, a run of MLflow.
WORK = """
import sys
from pathlib import Path

from ddlflow.report.screen import Screen
from ddlflow.runs.running import running
from ddlflow.runs.scratch import scratch
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request
from ddlflow.spec.site import Site
from ddlflow.tracking import open_run

storage, uri = Path(sys.argv[1]), sys.argv[2]
site = Site.model_validate({"storage": str(storage), "tracking": {"uri": uri}})
with (
    running(storage, "run x on y", "") as command,
    Session(Request(None, site, None, None, None), Screen()) as session,
    scratch(session.storage) as made,
    open_run(uri, storage / "tracking/it", experiment="e", name="x", tags={}) as run,
):
    (made / "model").touch()
    run.log_metrics({"loss": 1.0}, 1)
    print(command.name, run.run_id, flush=True)
    sys.stdin.readline()
    (made / "model").unlink()  # fails where somebody has removed it
    run.log_metrics({"loss": 0.5}, 2)
"""


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one costs seconds."""
    from ddlflow.tracking.connect import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path: Path, database: Path) -> Path:
    shutil.copy(database, tmp_path)
    (tmp_path / "conf").mkdir()
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    site = {"engine": {"use": "local"}, "storage": "kept", "tracking": tracking}
    (tmp_path / "conf/local.yaml").write_text(yaml.safe_dump(site))
    return tmp_path


# `ddlflow doctor` with a Prefect that ends lost commands at once: which they are is what is asked.
DOCTOR = """
import sys
from ddlflow import api
from ddlflow.cli.app import main
api.end_lost = lambda command, place, message: 1
sys.argv = ["ddlflow", "doctor", "--json"]
main()
"""


def begin(host: Host, project: Path) -> "tuple[subprocess.Popen[str], Owner, str]":
    """Starts a command that is at work; its owner, and its run's id."""
    process = host.start(
        [sys.executable, "-c", WORK, str(project / "kept"), f"sqlite:///{project}/mlflow.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name, run_id = process.stdout.readline().split()
    command = owner_of(name)
    assert command is not None
    return process, command, run_id


def doctor(host: Host, project: Path) -> dict[str, list[str]]:
    """What `ddlflow doctor` says there, by what it is of."""
    done = host.run([sys.executable, "-c", DOCTOR], cwd=project)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["what"], []).append(finding["text"])
    return found


def left(project: Path) -> set[str]:
    """What a command leaves on the storage: names up to the first dash or dot."""
    kept = project / "kept"
    paths = [*kept.glob("scratch-*"), *kept.glob("commands/*"), *kept.glob("tracking/it")]
    return {path.relative_to(kept).as_posix().partition("-")[0] for path in paths}


def silence(project: Path) -> None:
    """As if nobody had touched anything for a long time."""
    then = time.time() - owner.SILENT_S - 60
    kept = project / "kept"
    heard = [*kept.glob("scratch-*"), *kept.glob("commands/*"), *kept.glob("tracking/.*.lease")]
    assert len(heard) == 3
    for path in heard:
        os.utime(path, (then, then))


def status(project: Path, run_id: str) -> str:
    return Reader(f"sqlite:///{project}/mlflow.db").run(run_id).status


def test_a_command_that_lives_on_another_host_of_the_same_name_is_left_alone(
    project: Path, hosts: OpenHosts
) -> None:
    first, second = hosts("node", "node")
    process, command, run_id = begin(first, project)
    # As process numbers go, this host has one too: any start of it is another process's.
    assert command.host == second.run(["hostname"]).stdout.strip() == "node"
    before = left(project)
    said = doctor(second, project)
    assert left(project) == before
    assert "belongs to another host or container" in said["commands"][0], said
    assert "left alone" in said["scratch"][0]
    assert status(project, run_id) == "RUNNING"
    process.communicate("go on\n")
    assert process.returncode == 0
    assert status(project, run_id) == "FINISHED"
    assert left(project) == set()


def test_a_killed_command_is_cleaned_up_after_at_once_by_its_own_host(
    project: Path, hosts: OpenHosts
) -> None:
    first, _ = hosts("node", "node")
    process, command, run_id = begin(first, project)
    first.process(process).kill()
    process.communicate()
    said = doctor(first, project)
    assert f"run x on y (process {command.pid} on node) ended without a word" in said["lost"][0]
    assert left(project) == {"tracking/it"}  # to go on with
    assert status(project, run_id) == "KILLED"


def test_a_host_that_is_gone_is_cleaned_up_after_once_it_was_silent(
    project: Path, hosts: OpenHosts
) -> None:
    first, second = hosts("node", "node")
    process, _, run_id = begin(first, project)
    first.end()
    process.communicate()
    before = left(project)
    doctor(second, project)
    assert left(project) == before  # nobody can know
    silence(project)
    said = doctor(second, project)
    assert len(said["lost"]) == len(said["scratch"]) == 1
    assert left(project) == {"tracking/it"}
    assert status(project, run_id) == "KILLED"


def test_a_run_that_slept_too_long_does_not_write_into_what_another_has_closed(
    project: Path, hosts: OpenHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "BEAT_S", 5.0)
    spool = Spool(project / "kept/tracking/it")
    spool.append(RunBegan(t=1, id="ab", uri="x", experiment="e", name="n", tags={}))
    then = time.time() - owner.SILENT_S - 60
    os.utime(project / "kept/tracking/.it.lease", (then, then))
    closing = (
        "import sys; from pathlib import Path; from ddlflow.tracking.pending import send_pending;"
        "print(*send_pending(Path(sys.argv[1])))"
    )
    (other,) = hosts("node")
    said = other.run([sys.executable, "-c", closing, str(project / "kept/tracking")])
    assert "wait in" in said.stdout, said.stderr
    assert '"KILLED"' in (project / "kept/tracking/it/ops.jsonl").read_text()
    until = time.monotonic() + 60
    while not spool.is_lost and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(OSError, match=r"is gone|taken over"):
        spool.append(MetricsLogged(2, 1, {}))
    spool.close()


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_a_process_number_that_came_again_is_another_owner(tmp_path: Path, child: int) -> None:
    started = owner._started(child)
    assert started is not None
    living = replace(this_owner(), pid=child, started=started)
    assert state_of(living, tmp_path) == "alive"
    assert state_of(replace(living, started=started - 1), tmp_path) == "lost"
    psutil.Process(child).kill()
    while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert state_of(living, tmp_path) == "lost"


def test_an_owner_of_before_a_reboot_is_lost_soon(tmp_path: Path) -> None:
    """Its number and its start may be those of a process of now: a service starts alike."""
    ours = replace(this_owner(), machine="0a1b2c3d", space=owner._FIRST_SPACE)
    before = replace(ours, boot="before")
    path = tmp_path / "it"
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "_here", lambda: (ours.boot, ours.space))
        patch.setattr(owner, "_machine", lambda: ours.machine)
        assert state_of(before, path) == "elsewhere"
        then = time.time() - owner.REBOOTED_S - 10
        os.utime(path, (then, then))
        assert state_of(before, path) == "lost"
        for other in ({"host": "b"}, {"machine": "none"}, {"space": 1}):
            assert state_of(replace(before, **other), path) == "elsewhere"


def test_where_no_place_is_known_hearts_alone_tell(tmp_path: Path) -> None:
    """As without /proc: a process of this very host, dead or not, is heard of or not."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ddlflow.store import owner; owner._here = lambda: (owner._NOWHERE, 0);"
            "print(owner.this_owner().name)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    other = owner_of(ended.stdout.strip())
    assert other is not None
    assert not other.is_here
    assert state_of(other, tmp_path) == "elsewhere"


def test_a_name_tells_the_owner() -> None:
    ours = this_owner()
    assert owner_of(ours.name) == ours
    assert owner_of(replace(ours, host="node-7.cluster").name) == replace(
        ours, host="node-7.cluster"
    )
    for name in ("", "12-34", "notes", "12-34-node-7.cluster"):
        assert owner_of(name) is None
