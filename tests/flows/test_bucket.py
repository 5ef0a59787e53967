"""Runs whose storage is a bucket of a real S3 server: the same bits, resumed, leased, no secret."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from object_server import KEY, SECRET

from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.store.entries import entry_of
from ddlflow.store.object_client import forget_clients
from ddlflow.store.store import open_store
from ddlflow.train.saved import checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(
        # Prefect and MLflow on each other's and their own doings; none is ours.
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::pydantic.warnings.PydanticDeprecatedSince20",
        "ignore::ResourceWarning",
    ),
]
SLOW = ["--set", "train.epochs=120", "--set", "train.checkpoint_every_s=0.2"]


@pytest.fixture
def project(tmp_path: Path, bucket: str) -> Path:
    """A project with a small collider pipeline on two ranks, its storage in a bucket."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    pipeline = yaml.safe_load((ROOT / "pipelines/quickstart.yaml").read_text())
    pipeline["name"] = "small"
    pipeline["data"]["source"]["rows"] = 6_000
    pipeline["train"] |= {"epochs": 2, "batch_rows": 200, "virtual_ranks": 2}
    (tmp_path / "pipelines/small.yaml").write_text(yaml.safe_dump(pipeline))
    site = yaml.safe_load((ROOT / "conf/local.yaml").read_text())
    site |= {"engine": {"use": "local", "workers": 2}, "storage": bucket}
    (tmp_path / "conf/local.yaml").write_text(yaml.safe_dump(site))
    return tmp_path


def start(project: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "ddlflow", *arguments],
        cwd=project,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    """What a command printed, and what it said."""
    out, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert SECRET not in out + said
    assert KEY not in out + said
    result: dict[str, Any] = json.loads(out)
    return result, said


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_run_in_a_bucket_is_that_in_a_folder_and_is_killed_resumed_and_waited_for(
    project: Path, bucket: str
) -> None:
    store = open_store(bucket)
    killed = start(project, "run", "small", "--json", *SLOW)
    give_up = time.monotonic() + 400
    while not any(key.endswith(checkpoint.SUFFIX) for key in store.list("train")):
        assert time.monotonic() < give_up
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert not any(key.endswith("model/model.json") for key in store.list("train"))

    both = [start(project, "run", "small", "--json", *SLOW) for _ in range(2)]
    (one, said), (other, said_too) = map(ended, both)
    assert one["model_digest"] == other["model_digest"]
    assert one["model"] == other["model"]
    assert one["model"].startswith(f"{bucket}/train/")
    # One of them worked, and the other one waited and found it done.
    words = said + said_too
    assert words.count("train: goes on from step ") == 1
    assert "waiting: process " in words
    cached = [stage["cached"] for run in (one, other) for stage in run["stages"]
              if stage["name"] == "train"]  # fmt: skip
    assert sorted(cached) == [False, True]

    (in_folder, _) = ended(
        start(project, "run", "small", "--json", *SLOW, "--set", "storage=other")
    )
    assert one["model_digest"] == in_folder["model_digest"]
    assert one["metrics"] == in_folder["metrics"]
    made = open_store(one["predictions"])
    parts = [name for name in made.list() if name.endswith(".parquet")]
    for name in parts:
        theirs = pq.read_table(Path(in_folder["predictions"]) / name)
        assert pq.read_table(made.local(name)).equals(theirs)
    assert len(parts) > 0
    # Nothing of the passes is left, and of claims what the killed command had.
    assert not [key for key in store.list() if "/work/" in key]
    claims = {key: store.read(key).decode() for key in store.list() if "/." in f"/{key}"}
    held = [entry_of(name) for name in claims.values() if name]
    assert {entry.owner.pid for entry in held if entry} <= {killed.pid}
    assert all(held)
    _no_secret_in(project)


def test_a_search_over_folds_in_a_bucket_is_that_in_a_folder(
    project: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages themselves: that a whole command works in a bucket is the test above."""
    search = {
        "method": "grid",
        "cv": True,
        "space": {"train.optimizer.lr": [0.001, 0.01]},
        "pruning": {"use": "halving", "factor": 2, "min_epochs": 1},
    }
    path, more = project / "pipelines/small.yaml", {"search": search}
    more |= {"cv": {"folds": 2, "predictions": True}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more))
    monkeypatch.chdir(project)
    found = {}
    for storage in (bucket, "other"):
        request = load("small", "local", [f"storage={storage}"])
        with Session(request, Screen(io.StringIO())) as session:
            prepared = stages.prepare(session)
            trials = sweeps.table_of(sweeps.search(session, prepared))
            folds = sweeps.cross_validate(session, prepared).value.folds
        found[storage] = [
            [(row.number, row.values, row.score, row.status) for row in trials],
            [fold.metrics for fold in folds],
        ]
    assert found[bucket] == found["other"]
    assert [len(rows) for rows in found[bucket]] == [2, 2]


def test_what_is_wrong_with_a_bucket_is_told_in_one_line_before_anything_is_written(
    project: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    command_here: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.chdir(project)

    def said(command: str, *more: str, expected: int = 2) -> str:
        forget_clients()  # they have the keys of their first use
        status, out, wrong = command_here(command, "small", *more)
        assert status == expected, out + wrong
        return " ".join((out + wrong).split())

    for command in ("check", "run"):
        text = said(command, "--set", "storage=ftp://somewhere/x")
        assert (
            "storage is ftp://somewhere/x; expected a folder that every worker sees, or a" in text
        )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    text = said("run")
    assert f"storage {bucket}: " in text
    assert "access is denied (SignatureDoesNotMatch)" in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "wrong-secret" not in text
    assert "Traceback" not in text
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert f"{bucket}: four requests took " in said("check", expected=0)
    assert open_store(bucket).list() == []


def _no_secret_in(folder: Path) -> None:
    """No file of the project holds a key: neither reports, nor MLflow's database, nor logs."""
    for path in folder.rglob("*"):
        if path.is_file() and "cache" not in path.relative_to(folder).parts[:1]:
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert KEY.encode() not in content, path
