"""What a command uses is not removed under it: real sessions side by side, on two hosts."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hosts import Host, OpenHosts

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import DataError, DdlflowError
from ddlflow.history.audit import _shards
from ddlflow.report.screen import Screen
from ddlflow.runs import holds, stages, sweeps
from ddlflow.runs.session import Session, hashed
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site
from ddlflow.store import lease
from ddlflow.store.entries import entries
from ddlflow.store.folder import FolderStore

# argv: the project, and what is done: a word a stage, "wait" for a line of standard input.
COMMAND = """
import sys
from pathlib import Path

from ddlflow.runs import stages, sweeps
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

root, fresh, *words = sys.argv[1:]
site = {
    "engine": {"use": "local", "workers": 1},
    "device": "cpu",
    "data_root": root,
    "storage": f"{root}/kept",
}
pipeline = {
    "name": "p",
    "data": {"source": "t.parquet", "label": "y"},
    "model": {"use": "linear"},
    "train": {"objective": "binary", "epochs": 2, "batch_rows": 100},
    "cv": {"folds": 3},
}
request = Request(
    Pipeline.model_validate(pipeline), Site.model_validate(site), Path(root), Path(root), Path(root)
)
with Session(request, Screen(sys.stdout), fresh=fresh == "fresh") as session:
    for word in words:
        if word == "wait":
            print("waits for a word", flush=True)
            sys.stdin.readline()
        elif word == "prepare":
            prepared = stages.prepare(session)
        elif word == "train":
            trained = stages.train(session, prepared)
        elif word == "cross_validate":
            sweeps.cross_validate(session, prepared)
        elif word == "evaluate":
            stages.evaluate(session, prepared, trained)
print("done", flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    features = random.standard_normal((600, 3))
    columns = {f"x{k}": features[:, k] for k in range(3)}
    label = (features.sum(1) > 0).astype(int)
    pq.write_table(pa.table(columns | {"y": label}), tmp_path / "t.parquet")
    return tmp_path


def command(host: Host, project: Path, *words: str) -> "subprocess.Popen[str]":
    return host.start(
        [sys.executable, "-c", COMMAND, str(project), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: "subprocess.Popen[str]", wanted: str) -> list[str]:
    """The lines up to one that holds a text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if wanted in line:
            return lines
    raise AssertionError("".join(lines))


def session_at(project: Path, **pipeline: Any) -> Session:
    """A session of this process."""
    site = {
        "engine": {"use": "local", "workers": 1},
        "device": "cpu",
        "data_root": str(project),
        "storage": str(project / "kept"),
    }
    values = {
        "name": "p",
        "data": {"source": "t.parquet", "label": "y"},
        "model": {"use": "linear"},
        "train": {"objective": "binary", "epochs": 2, "batch_rows": 100},
        "cv": {"folds": 3},
    }
    request = Request(
        Pipeline.model_validate(values | pipeline),
        Site.model_validate(site),
        project,
        project,
        project,
    )
    return Session(request, Screen(io.StringIO()))


@pytest.mark.parametrize("work", [["train", "evaluate"], ["cross_validate"]])
def test_fresh_waits_for_whoever_trains_on_what_it_makes_anew(
    project: Path, hosts: OpenHosts, work: list[str]
) -> None:
    first, second = hosts("node", "node")
    trains = command(first, project, "", "prepare", "wait", *work)
    until(trains, "waits for a word")
    (manifest,) = (project / "kept/prepare").glob("*/manifest.json")
    before = manifest.stat().st_mtime_ns
    anew = command(second, project, "fresh", "prepare", "wait")
    said = until(anew, "waiting:")[-1]
    assert f"on node uses {manifest.parent}" in said.replace("\n", " ")
    assert manifest.stat().st_mtime_ns == before
    assert trains.stdin is not None
    trains.stdin.write("go on\n")
    trains.stdin.flush()
    until(trains, "done")
    trains.communicate()
    assert trains.returncode == 0
    until(anew, "waits for a word")
    assert manifest.stat().st_mtime_ns > before
    anew.communicate("go on\n")
    assert anew.returncode == 0
    assert not list((project / "kept").rglob(".*.users"))


def test_whoever_was_killed_is_not_waited_for(project: Path, hosts: OpenHosts) -> None:
    (host,) = hosts("node")
    trains = command(host, project, "", "prepare", "wait")
    until(trains, "waits for a word")
    host.process(trains).kill()
    trains.communicate()
    anew = command(host, project, "fresh", "prepare")
    assert "waiting" not in "".join(until(anew, "done"))
    anew.communicate()


def test_two_that_use_the_same_do_not_wait_for_each_other(project: Path) -> None:
    with session_at(project) as one, session_at(project) as two:
        prepared = stages.prepare(one)
        assert stages.prepare(two).cached
        users = Path(prepared.folder).with_name(f".{prepared.key}.users")
        assert len(entries(users)) == 2
    assert not users.exists()


def test_who_is_waited_for_does_not_wait_for_who_waits(project: Path, hosts: OpenHosts) -> None:
    """A stage is asked for twice, as by repeated folds, while another is about to make it anew."""
    first, second = hosts("a", "b")
    uses = command(first, project, "", "prepare", "wait", "prepare", "wait")
    until(uses, "waits for a word")
    anew = command(second, project, "fresh", "prepare", "prepare")
    until(anew, "waiting:")
    assert uses.stdin is not None
    uses.stdin.write("go on\n")
    uses.stdin.flush()
    assert "waiting" not in "".join(until(uses, "waits for a word"))
    uses.communicate("go on\n")
    assert "".join(until(anew, "done\n")).count("done, cached") == 1  # made anew once
    anew.communicate()


def test_predictions_into_one_folder_wait_for_each_other(project: Path, hosts: OpenHosts) -> None:
    """Else --fresh of one removes what the other has written."""
    (host,) = hosts("node")
    site = {"engine": {"use": "local", "workers": 1}, "device": "cpu", "storage": "kept"}
    (project / "site.yaml").write_text(json.dumps(site))
    with session_at(project) as session:
        trained = stages.train(session, stages.prepare(session))
    code = (
        "import ddlflow; ddlflow.predict('{}', 't.parquet', out='out', on='site.yaml', fresh=True)"
    )
    predict = [sys.executable, "-c", code.format(trained.value.model)]
    place = project / "kept/predictions" / hashed(str(project / "out"))
    with session_at(project) as session, session.lease(FolderStore(place), "it"):
        process = host.start(
            predict, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert "the predictions in out" in until(process, "waiting:")[-1]
        assert not (project / "out").exists()
    process.communicate()
    assert process.returncode == 0
    assert (project / "out/_SUCCESS").exists()


def test_a_user_elsewhere_that_is_silent_is_not_waited_for_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 2.5)
    told: list[DdlflowError] = []
    said: list[str] = []
    with holds.using(tmp_path / "it", told.append):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("ddlflow.store.owner._here", lambda: ("another", 1))
            holds.wait_for_users(tmp_path / "it", set(), said.append, stale_s=1.0)
        assert f"uses {tmp_path / 'it'}" in said[0]
        deadline = threading.Event()
        for _ in range(600):
            if told or deadline.wait(0.1):
                break
        assert "may be made anew by another command" in str(told[0])
    assert list(tmp_path.iterdir()) == []


def damage(folder: Path, split: str) -> Path:
    shard = Manifest.load(folder).shards_of(split)[0]  # type: ignore[arg-type] # a split's name
    path = folder / shard.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("split", "work"),
    [
        ("train", stages.train),
        ("validation", stages.train),
        ("train", sweeps.cross_validate),
        ("test", lambda s, p: stages.evaluate(s, p, stages.train(s, p))),
    ],
)
def test_no_stage_uses_a_damaged_shard(project: Path, split: str, work: Callable[..., Any]) -> None:
    with session_at(project) as session:
        prepared = stages.prepare(session)
        path = damage(Path(prepared.folder), split)
        with pytest.raises(DataError, match="is damaged") as caught:
            work(session, prepared)
        assert str(path) in str(caught.value)


def test_the_audit_reads_the_shards_that_are_there(project: Path) -> None:
    with session_at(project) as session:
        prepared = stages.prepare(session)
        digest = prepared.value.digest
        assert _shards(session, digest) == (len(Manifest.load(Path(prepared.folder)).shards), [])
        assert _shards(session, "another") == (None, [])
        path = damage(Path(prepared.folder), "train")
        _, (fault,) = _shards(session, digest)
        assert str(path) in fault
