"""A disk without space: the training waits for it, says so, and goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddlflow.train.pulse import Pulse
from ddlflow.train.saved.space import wait_for_space

# Trains on a tmpfs that is full from the start, until a thread makes space.
FULL_DISK = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
import torch
from ddlflow.history.audit import audit_ledgers
from ddlflow.train import training
from ddlflow.train.job import Job
from ddlflow.train.events import Noted
from ddlflow.train.pulse import Pulse
import json

values, disk = json.loads(sys.argv[1]), Path(sys.argv[2])
filler = disk / "filler"
with filler.open("wb", buffering=0) as file:
    for size in (1 << 16, 1 << 12):
        try:
            while True:
                file.write(bytes(size))
        except OSError:
            pass
said = []

def tell(event):
    if isinstance(event, Noted):
        said.append(event.text)
        print(event.text, flush=True)
        if "waits for space" in event.text:
            assert pulse.resting
            filler.unlink()

pulse = Pulse(lambda beat: None, 1.0)
job = replace(Job.from_json(values), folder=str(disk / "training"), attempt="1")
result = training.run(
    job, 0, 1, None, torch.device("cpu"), tell=tell, must_stop=lambda: False, pulse=pulse
)
assert len(said) == 2 and "There is space again" in said[1], said
assert not audit_ledgers("a run", Path(job.ledgers.location), result).faults
"""


def test_another_error_is_raised_at_once(tmp_path: Path) -> None:
    pulse = Pulse(lambda event: None, 1.0)

    def write() -> None:
        (tmp_path / "no" / "folder").write_bytes(b"1")

    with pytest.raises(FileNotFoundError):
        wait_for_space(write, "it", pulse=pulse, say=pytest.fail)
    assert not pulse.resting


def test_a_training_on_a_full_disk_waits_for_space(bench, tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("no unshare here, which gives a test a small disk of its own")
    start = ["unshare", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run([*start, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs in a namespace here")
    made = bench()
    values = json.dumps(made.job(tmp_path / "t", epochs=2, batch_rows=64).to_json())
    script = [sys.executable, "-c", FULL_DISK, values, str(tmp_path)]
    done = subprocess.run(
        [*start, "sh", "-c", f'{mount} && exec "$@"', "sh", *script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device. The training waits for space." in done.stdout
