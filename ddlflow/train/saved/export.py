"""A trained model as a folder: weights, what made it, and what reading its inputs needs.

model.json    format, model section, labels and their scale, columns with vocabularies and
              expressions, versions, digest, and the SHA-256 of all that and weights.pt
              (``description``)
weights.pt    the state of ``Predictor`` (standardise + net); tensors alone
code/         the user's modules, where the pipeline names any
train.json    the epochs' history and the digest trail
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import ddlflow
from ddlflow.data.shards.batches import LOAD_ROWS, mark
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.rows import Rows
from ddlflow.models.label_scale import LabelScale
from ddlflow.models.standardise import Predictor, Standardise, standardises
from ddlflow.spec.code import digest_of
from ddlflow.store.store import open_store
from ddlflow.train.job import Job
from ddlflow.train.result import TrainingResult
from ddlflow.train.saved.description import SEAL, ModelDescription, sealed
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.ledger import worlds
from ddlflow.train.saved.state import State

Gathered = Callable[[Sequence[int]], list[list[int]]]  # what each rank gave, by rank


def rows_mark(rows: Rows, rank: int, world: int, gathered: Gathered) -> int:
    """The mark (``data.batches.mark``) of all rows trained on: what each epoch's has to be.

    All ranks call this, and each reads a run of the rows, whatever it was trained on.
    """
    first, last = (rows.rows * k // world for k in (rank, rank + 1))
    ids, total = np.empty(min(LOAD_ROWS, last - first), np.int64), 0
    for start in range(first, last, LOAD_ROWS):
        stop = min(last, start + LOAD_ROWS)
        rows.read(start, stop, {"row": ids}, 0)
        total += int(mark(ids[: stop - start].reshape(1, -1))[0])
    halves = gathered([total % 2**32, total % 2**64 >> 32])  # they are sent as int64
    return sum(low + (high << 32) for low, high in halves) % 2**64


def save_model(
    job: Job, manifest: Manifest, mark: int, state: State, label: LabelScale
) -> TrainingResult:
    """Writes ``job.model_folder`` as a whole and returns the training's result.

    With early stopping these are the best epoch's weights, else the last ones.

    Args:
        job: of the training.
        manifest: of its data set.
        mark: of all rows that it was trained on (``rows_mark``).
        state: at its end.
        label: how the net learnt the label.
    """
    if state.best is not None:
        state.net.load_state_dict(state.best.tensors)
    statistics = manifest.statistics("train")
    standardise = Standardise(statistics.mean, statistics.variance)
    tensors = standardises(manifest.tensors, manifest.tensor_statistics())
    inputs = manifest.columns.inputs
    predictor = Predictor(standardise, state.net.cpu(), label, inputs, tensors)
    model_digest = digest(state.net)
    last = state.best.epoch if state.best else state.epoch
    row: dict[str, float] = state.history[last - 1] if state.history else {}
    result = TrainingResult(
        model_digest=model_digest,
        epochs=state.epoch,
        best_epoch=last,
        steps=state.steps,
        rows=manifest.rows("train"),
        rows_mark=mark,
        seconds=state.seconds,
        metrics={k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")},
        history=state.history,
        trail=state.trail,
        worlds=worlds(job.ledgers),
    )
    missing = statistics.missing / statistics.rows
    weights = io.BytesIO()  # torch itself would name a full disk by an error of its own
    torch.save(predictor.state_dict(), weights)
    described = ModelDescription(
        ddlflow=ddlflow.__version__,
        torch=torch.__version__,
        model=job.model,
        objective=job.train.objective,
        labels=job.labels,
        label_scale=label.to_json(),
        columns=manifest.columns,
        data=job.data,
        missing=dict(zip(manifest.feature_names, missing.tolist(), strict=True)),
        data_digest=manifest.digest,
        model_digest=model_digest,
        code_digest=digest_of(Path(job.code)) if job.code is not None else "",
        virtual_ranks=job.virtual_ranks,
        threads=job.threads,
    ).to_json()
    seal = sealed(described, hashlib.sha256(weights.getbuffer()).hexdigest())
    with open_store(job.folder).writing_folder("model", last="model.json") as making:
        (making / "weights.pt").write_bytes(weights.getbuffer())
        (making / "model.json").write_text(json.dumps({**described, SEAL: seal}, indent=1))
        (making / "train.json").write_text(json.dumps(result.to_json()))
        if job.code is not None:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(job.code, making / "code", ignore=ignored)
    return result
