"""Workers elsewhere say themselves what they are: nothing of it is asked of this process."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from distributed import Nanny, Scheduler, SpecCluster
from mlflow import MlflowClient

from ddlflow.errors import SpecError, TrainingError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.check.site import workers as check_workers
from ddlflow.runs.ranks import Gathering, ranks_of_attempts, said
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session
from ddlflow.runs.workers import gpus_of, least_cores
from ddlflow.spec.load import load
from ddlflow.store.folder import FolderStore
from ddlflow.train.facts import Facts, facts_here, unlike

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

HERE = facts_here()
# torch does not use the processor's newer instructions then: a processor of another class.
OLD = {"ATEN_CPU_CAPABILITY": "default"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    a, b = np.random.default_rng(1).standard_normal((2, 500))
    (folder / "data").mkdir()
    pq.write_table(pa.table({"a": a, "b": b, "y": (a > b).astype(int)}), folder / "data/t.parquet")
    pipeline = {
        "name": "elsewhere",
        "data": {"source": "t.parquet", "label": "y"},
        "model": {"use": "linear"},
        "train": {"objective": "binary", "epochs": 2, "virtual_ranks": 2},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler with two workers, one of them on an old processor."""
    one: dict[str, Any] = {"cls": Nanny, "options": {"nthreads": 1, "dashboard_address": None}}
    old = {**one, "options": {**one["options"], "env": OLD}}
    scheduler = {
        "cls": Scheduler,
        "options": {"port": 0, "host": "127.0.0.1", "dashboard_address": ":0"},
    }
    with SpecCluster(workers={0: one, 1: old}, scheduler=scheduler, silence_logs=50) as cluster:
        yield cluster.scheduler_address


def session(
    folder: Path,
    address: str | None,
    *changes: str,
    workers: int = 2,
    heard: io.StringIO | None = None,
) -> Session:
    engine: dict[str, Any] = {"use": "local", "workers": workers}
    if address is not None:
        engine = {"use": "dask", "address": address, "workers": workers}
    site = {
        "engine": engine,
        "device": "auto",
        "data_root": str(folder / "data"),
        "storage": str(folder / "storage"),
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    request = load(str(folder / "pipeline.yaml"), str(folder / "site.yaml"), changes)
    return Session(request, Screen(heard or io.StringIO()))


def test_each_worker_says_what_it_is(folder: Path, address: str) -> None:
    with session(folder, address) as opened:
        found = opened.workers
        assert sorted(facts.processor for facts in found) == sorted(
            [HERE.processor, "x86_64 DEFAULT"]
        )
        assert [facts.versions for facts in found] == [HERE.versions] * 2
        assert opened.num_gpus == len(found) * bool(found[0].gpus)
        notes = [one.text for one in check_workers(opened.request)]
    assert "memory free for each" in notes[0]
    assert notes[-1].startswith("The workers would not compute the same bits: processor is ")


def test_unlike_ranks_are_refused_in_elastic_and_named_otherwise(
    folder: Path, address: str
) -> None:
    with session(folder, address) as opened:
        prepared = stages.prepare(opened)
        with pytest.raises(TrainingError) as caught:
            stages.train(opened, prepared)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("The ranks would not compute the same bits: processor is ")
    assert "x86_64 DEFAULT on" in message
    assert f"{HERE.processor} on {HERE.host} (rank " in message

    changes = ["train.virtual_ranks=auto", "train.determinism=off"]
    heard = io.StringIO()
    with session(folder, address, *changes, heard=heard) as opened:
        done = stages.train(opened, prepared)
    (attempt,) = done.value.ranks
    assert {rank.processor for rank in attempt.ranks} == {HERE.processor, "x86_64 DEFAULT"}
    assert [rank.threads for rank in attempt.ranks] == [1, 1]
    assert "the ranks are unlike: processor is " in heard.getvalue()


def test_what_is_recorded_is_what_the_ranks_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks on an old processor; this process is on another."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    with session(folder, None, "train.seed=11", workers=1) as opened:
        prepared = stages.prepare(opened)
        with recorded(opened, prepared) as record:
            trained = stages.train(opened, prepared, record.on_train_event)
            record.trained(trained)
            run_id = record.run_id
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    tags = client.get_run(run_id).data.tags
    assert HERE.processor != "x86_64 DEFAULT"
    assert tags["ddlflow.machine"] == "x86_64 DEFAULT"
    assert tags["ddlflow.torch"] == HERE.versions["torch"]
    path = client.download_artifacts(run_id, "training/ranks.json", str(folder))
    (attempt,) = json.loads(Path(path).read_text())
    assert [rank["processor"] for rank in attempt["ranks"]] == ["x86_64 DEFAULT"]


# ---- without a cluster ---------------------------------------------------------------------


def facts(**more: Any) -> Facts:
    return replace(HERE, **more)


def test_only_what_decides_bits_has_to_be_alike() -> None:
    other = facts(host="b", cores=99, memory_bytes=1, free_bytes=1, threads=7)
    assert unlike({0: HERE, 1: other}, "cpu") == ""
    newer = facts(host="b", versions={**HERE.versions, "numpy": "9.9"})
    assert unlike({0: facts(host="a"), 1: newer, 2: facts(host="c")}, "cpu") == (
        f"numpy is {HERE.versions['numpy']} on a (rank 0), c (rank 2) and 9.9 on b (rank 1)"
    )
    gpus = {0: facts(gpus=["H100"]), 1: facts(gpus=["A100"])}
    assert unlike(gpus, "cpu") == ""
    assert "GPU is H100 on" in unlike(gpus, "cuda")


def test_a_training_that_goes_on_elsewhere_says_so_and_keeps_both(tmp_path: Path) -> None:
    heard: list[str] = []
    for processor in ("x86_64 AVX2", "x86_64 AVX2", "arm64 DEFAULT"):
        gathering = Gathering(FolderStore(tmp_path), 2, "cpu", must_be_alike=True, say=heard.append)
        for rank in (1, 0):
            gathering.add(rank, facts(host=f"h{rank}", processor=processor))
    assert heard == [
        "goes on where last bits may differ: processor was x86_64 AVX2, now arm64 DEFAULT"
    ]
    assert [entry.attempt for entry in ranks_of_attempts(FolderStore(tmp_path))] == [1, 2, 3]
    assert [rank.host for rank in ranks_of_attempts(FolderStore(tmp_path))[0].ranks] == ["h0", "h1"]
    assert said(FolderStore(tmp_path))["machine"] == "x86_64 AVX2 and arm64 DEFAULT"
    assert said(FolderStore(tmp_path))["hosts"] == "h0 and h1"


def test_gpus_and_cores_are_the_workers() -> None:
    with_gpu, without = facts(gpus=["H100"], cores=16), facts(host="b", gpus=[], cores=4)
    assert gpus_of("auto", [with_gpu, with_gpu]) == 2
    assert gpus_of("auto", [with_gpu, without]) == 0
    with pytest.raises(SpecError, match="workers find no GPU on b"):
        gpus_of("cuda", [with_gpu, without])
    assert least_cores([with_gpu, with_gpu]) == 8
    assert least_cores([with_gpu, without]) == 4
