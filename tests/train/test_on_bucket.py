"""A training whose rows, checkpoints, ledgers and model are in a bucket: the bits of a folder's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ddlflow.errors import CheckpointError
from ddlflow.history.artifacts import training_of
from ddlflow.history.audit import audit_ledgers
from ddlflow.infer.evaluate import evaluate
from ddlflow.infer.model import load_model
from ddlflow.store import cache
from ddlflow.store.store import Store, open_store
from ddlflow.train import training
from ddlflow.train.events import Resumed
from ddlflow.train.job import Job
from ddlflow.train.loop import Stopped
from ddlflow.train.saved import checkpoint, fence

MORE = {"epochs": 3, "digest_every": 1, "checkpoint_every_s": 1e-6, "virtual_ranks": 2}


def put(folder: Path, store: Store) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())


def trained(job: Job, must_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    events: list[Any] = []
    how = {"tell": events.append, "must_stop": must_stop}
    result = training.run(job, 0, 1, None, torch.device("cpu"), **how)  # type: ignore[arg-type]
    assert result is not None
    resumed = [event.step for event in events if isinstance(event, Resumed)]
    return result.to_json() | {"resumed": resumed}


def test_a_training_stopped_and_gone_on_with_in_a_bucket_has_a_folders_bits(
    bench: Callable[..., Any], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = bench("binary", "all"), open_store(bucket)
    whole = made.train(tmp_path / "folder", **MORE).result
    put(made.dataset, store.at("dataset"))
    of_folder = made.job(tmp_path / "folder", **MORE)
    job = replace(
        of_folder, dataset=store.at("dataset").location, folder=store.at("train").location
    )
    # A cache that holds one shard of them all: each is fetched again and again.
    shards = [path.stat().st_size for path in (made.dataset / "shards").rglob("*.arrow")]
    assert len(shards) > 2
    monkeypatch.setenv("DDLFLOW_CACHE_GB", str(max(shards) * 1.1 / 1e9))
    asked = iter([False] * 14 + [True])
    with pytest.raises(Stopped):
        trained(job, lambda: next(asked))
    kept = checkpoint.files(job.checkpoints)
    assert len(kept) == 2
    # The newest is damaged where it lies: the one before is gone on from.
    job.checkpoints.write(kept[-1], job.checkpoints.read(kept[-1])[:-9])
    result = trained(replace(job, attempt="1"))
    assert result["resumed"] == [checkpoint.step_of(kept[0])]
    assert result["model_digest"] == whole["model_digest"]
    assert result["trail"] == whole["trail"]

    ledgers = job.ledgers.local_folder()
    assert len(job.ledgers.list()) == 2
    assert audit_ledgers("a run", ledgers, training_of(result, "train.json")).faults == []
    assert json.loads(job.model_folder.read("train.json"))["trail"] == whole["trail"]
    copies = cache.cache_here().scratch().parent / "copies"
    size = sum(path.stat().st_size for path in copies.rglob("*.arrow"))
    assert size <= max(shards) * 1.1

    with pytest.raises(CheckpointError, match=r"attempt of the training in s3://.* has beg"):
        fence.check(job.checkpoints, fence.claim(job.checkpoints) - 1)


def test_a_model_in_a_bucket_predicts_and_scores_as_the_one_in_a_folder(
    bench: Callable[..., Any], bucket: str, tmp_path: Path
) -> None:
    made, store = bench("binary", "all"), open_store(bucket)
    made.train(tmp_path, **MORE)
    put(made.dataset, store.at("dataset"))
    put(tmp_path / "model", store.at("model"))
    here, there = (load_model(place) for place in (tmp_path / "model", store.at("model").location))
    assert here.identity == there.identity
    batch = made.source.to_batches()[0]
    assert here.predict(batch).equals(there.predict(batch))
    how: dict[str, Any] = {"spec": made.job(tmp_path, **MORE).train, "feature": None}
    how |= {"threads": 1, "map_over": lambda f, items, name: map(f, items)}
    ours = evaluate(tmp_path / "model", made.dataset, "validation", **how)
    theirs = evaluate(store.at("model"), store.at("dataset"), "validation", **how)
    assert theirs == ours
    assert np.isfinite(ours.metrics["auroc"])
    assert isinstance(batch, pa.RecordBatch)
