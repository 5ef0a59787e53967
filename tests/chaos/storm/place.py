"""Where the suite runs: a Dask scheduler, workers with nannies, their network, a small disk.

With the rights for it (root, or a kernel that lets a user make namespaces) the whole suite runs in
namespaces of its own: each worker has a network of its own, joined by a bridge; the storage is a
small tmpfs; and all of it is gone with the suite's process, however that ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from course import CUT_RANKS, CUT_WORKER, FULL_DISK
from distributed import Client

from ddlflow.engines.dask_ranks import Cluster
from ddlflow.errors import EngineError
from ddlflow.train.rank import NAME as RANK

HUB = "10.77.0.1"
SPACE = "64m"  # of the small disk
MARK = "DDLFLOW_STORM"  # an environment variable of all our processes
_ISOLATE = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]


def isolate() -> str:
    """Starts this program again in namespaces of its own; where it cannot, says what is missing.

    Returns, in the end that can be worked in, what is missing there: nothing if it is isolated.
    """
    if MARK in os.environ:
        return os.environ[f"{MARK}_MISSING"]
    missing = "no unshare, ip, bridge and nsenter here"
    if all(map(shutil.which, ("unshare", "ip", "bridge", "nsenter"))):
        missing = "no right to make network and mount namespaces here"
        links = "ip link add type veth && ip link add type bridge && mount -t tmpfs none /mnt"
        for rights in ([], ["--map-root-user"]):
            start = ["unshare", *rights, *_ISOLATE]
            tried = subprocess.run([*start, "sh", "-c", links], check=False, capture_output=True)
            if tried.returncode == 0:
                os.environ |= {MARK: str(os.getpid()), f"{MARK}_MISSING": ""}
                os.execvp("unshare", [*start, sys.executable, *sys.argv])
    os.environ |= {MARK: str(os.getpid()), f"{MARK}_MISSING": missing}
    return missing


@dataclass(slots=True)
class Nanny:
    """A worker's nanny, and the network it lives in."""

    process: psutil.Popen
    link: str | None
    network: subprocess.Popen[bytes] | None

    @property
    def worker(self) -> psutil.Process | None:
        """Its worker, where there is one at this moment."""
        with suppress(psutil.Error):
            for child in self.process.children():
                if any("spawn_main" in word for word in child.cmdline()):
                    return child
        return None

    def link_up(self, up: bool) -> None:
        _run("ip", "link", "set", self.link, "up" if up else "down")

    def alone(self, alone: bool) -> None:
        """Cuts the way to other workers, and to them alone."""
        _run("bridge", "link", "set", "dev", self.link, "isolated", "on" if alone else "off")

    def end(self) -> None:
        worker = self.worker
        for process in (worker, self.process):
            if process is not None:
                with suppress(psutil.Error):
                    process.kill()
        self.process.wait()
        if self.network is not None:
            self.network.kill()  # its end of the link, and so ours, goes with it
            self.network.wait()


class Place:
    """A context manager; ``missing`` says for kinds of faults why they cannot be here."""

    def __init__(self) -> None:
        why = isolate()
        self.isolated = not why
        self.missing = dict.fromkeys((CUT_WORKER, CUT_RANKS, FULL_DISK), why) if why else {}
        self.folder = Path(tempfile.mkdtemp(prefix="ddlflow-storm-"))
        self.disk = self.folder / "disk"
        self.nannies: list[Nanny] = []
        self.mlflow: psutil.Popen | None = None
        self.mlflow_uri = "http://127.0.0.1:5123"
        self._log = (self.folder / "cluster.log").open("ab")
        self._made = 0

    # ---- the cluster -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.disk.mkdir()
        (self.folder / "data").mkdir()
        _write_rows(self.folder / "data" / "t.parquet")
        host = "127.0.0.1"
        if self.isolated:
            host = HUB
            _run("mount", "-t", "tmpfs", "-o", f"size={SPACE}", "none", str(self.disk))
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "hub", "type", "bridge")
            _run("ip", "addr", "add", f"{HUB}/24", "dev", "hub")
            _run("ip", "link", "set", "hub", "up")
        at = self.folder / "scheduler.json"
        command = ["scheduler", "--host", host, "--port", "0", "--no-dashboard"]
        self._scheduler = self._start(_dask(*command, "--scheduler-file", str(at)))
        _wait(lambda: at.exists() and at.read_text().strip(), "the Dask scheduler to start")
        self.address = json.loads(at.read_text())["address"]
        self._client = Client(self.address, set_as_default=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        for nanny in self.nannies:
            nanny.end()
        for process in (self._scheduler, self.mlflow):
            if process is not None:
                process.kill()
                process.wait()
        self._log.close()
        if self.isolated:
            _run("umount", "-l", str(self.disk))
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_worker(self) -> Nanny:
        """Starts one more worker with a nanny, and does not wait for it."""
        self._made += 1
        link, network, enter, host = None, None, [], "127.0.0.1"
        if self.isolated:
            network = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
            link, host = f"worker{self._made}", f"10.77.0.{10 + self._made}"
            mine = Path("/proc/self/ns/net").readlink()
            theirs = Path(f"/proc/{network.pid}/ns/net")
            _wait(lambda: theirs.readlink() != mine, "a network namespace")
            peer = ["peer", "name", "eth0", "netns", str(network.pid)]
            _run("ip", "link", "add", link, "type", "veth", *peer)
            _run("ip", "link", "set", link, "master", "hub", "up")
            enter = ["nsenter", f"--net={theirs}"]
            _run(*enter, "ip", "link", "set", "lo", "up")
            _run(*enter, "ip", "addr", "add", f"{host}/24", "dev", "eth0")
            _run(*enter, "ip", "link", "set", "eth0", "up")
        options = ["--host", host, "--nthreads", "1", "--nanny", "--no-dashboard"]
        options += ["--memory-limit", "0", "--local-directory", str(self.folder / "dask")]
        process = self._start([*enter, *_dask("worker", self.address, *options)])
        self.nannies.append(Nanny(process, link, network))
        return self.nannies[-1]

    def heal(self, num_workers: int) -> None:
        """Makes all well again, with so many workers that answer."""
        for nanny in self.nannies:
            if nanny.link is not None:
                nanny.link_up(True)
                nanny.alone(False)
            if nanny.worker is not None:
                with suppress(psutil.Error):
                    nanny.worker.resume()
        cluster = Cluster(self._client, "the suite's cluster")
        give_up = time.monotonic() + 90
        grace = time.monotonic() + 15
        while True:
            for nanny in [n for n in self.nannies if n.process.poll() is not None]:
                nanny.end()
                self.nannies.remove(nanny)
            while len(self.nannies) > num_workers:
                self.nannies.pop(0).end()
            while len(self.nannies) < num_workers:
                self.add_worker()
            answers: dict[str, int] = {}
            with suppress(EngineError):
                answers = cluster.run(os.getpid, cluster.workers())
            pids = {nanny.worker.pid for nanny in self.nannies if nanny.worker is not None}
            if pids == set(answers.values()) and len(pids) == num_workers:
                return
            if time.monotonic() > grace:
                # One that does not come back is given up, as a cluster manager would do.
                grace = time.monotonic() + 30
                for nanny in self.nannies:
                    if nanny.worker is None or nanny.worker.pid not in answers.values():
                        nanny.process.kill()
            assert time.monotonic() < give_up, "the cluster did not get well"
            time.sleep(0.2)

    def ranks(self) -> list[psutil.Process]:
        """All rank processes of this suite, stopped ones and orphans too; in order of pid."""
        mine = os.environ[MARK]
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == RANK and (process.environ().get(MARK) == mine):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    # ---- MLflow ----------------------------------------------------------------------------

    def start_mlflow(self) -> None:
        """Starts the MLflow server where none runs, and does not wait for it."""
        if self.mlflow is not None and self.mlflow.poll() is None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        host, port = self.mlflow_uri.removeprefix("http://").split(":")
        self.mlflow = self._start([*command, "--host", host, "--port", port])

    def wait_for_mlflow(self) -> None:
        """Starts it where none runs, and returns once it answers."""
        self.start_mlflow()

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{self.mlflow_uri}/health").status_code == 200
            return False

        _wait(answers, "the MLflow server to start", 120)

    def kill_mlflow(self) -> None:
        assert self.mlflow is not None
        os.killpg(self.mlflow.pid, signal.SIGKILL)
        self.mlflow.wait()

    def _start(self, command: list[str]) -> psutil.Popen:
        return psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=self.folder,
            start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )


def _dask(*words: str) -> list[str]:
    return [sys.executable, "-m", "dask", *words]


def _run(*command: Any) -> None:
    subprocess.run(list(command), check=True)


def _wait(seen: Any, what: str, give_up_s: float = 60) -> None:
    give_up = time.monotonic() + give_up_s
    while not seen():
        assert time.monotonic() < give_up, f"gave up to wait for {what}"
        time.sleep(0.05)


def _write_rows(path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 2_000))
    y = (a - b + 0.5 * rng.standard_normal(2_000) > 0).astype(int)
    pq.write_table(pa.table({"a": a, "b": b, "y": y}), path)
