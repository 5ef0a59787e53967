"""A trained model as a folder: weights, what made it, and what reading its inputs needs.

model.json    format, model section, labels, columns with vocabularies, versions, digest
weights.pt    the state of ``Predictor`` (standardise + net); tensors alone
code/         the user's modules, where the pipeline names any
train.json    the epochs' history and the digest trail
"""

import json
import shutil
from typing import Any

import torch

import ddlflow
from ddlflow.data.manifest import Manifest
from ddlflow.models.standardise import Predictor, Standardise
from ddlflow.train.digests import digest
from ddlflow.train.job import Job
from ddlflow.train.state import State

FORMAT = 1


def save_model(job: Job, manifest: Manifest, state: State) -> dict[str, Any]:
    """Writes ``job.model_folder`` as a whole (by rename) and returns the training's result.

    With early stopping these are the best epoch's weights, else the last ones.
    """
    if state.best is not None:
        state.net.load_state_dict(state.best["tensors"])
    statistics = manifest.statistics("train")
    predictor = Predictor(Standardise(statistics.mean, statistics.variance), state.net.cpu())
    model_digest = digest(state.net)
    last = state.best["epoch"] if state.best else state.epoch
    row: dict[str, float] = state.history[last - 1] if state.history else {}
    result = {
        "model_digest": model_digest,
        "epochs": state.epoch,
        "best_epoch": last,
        "steps": state.steps,
        "rows": manifest.rows("train"),
        "seconds": state.seconds,
        "metrics": {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")},
        "history": state.history,
        "trail": state.trail,
    }
    described = {
        "format": FORMAT,
        "ddlflow": ddlflow.__version__,
        "torch": torch.__version__,
        "model": job.model,
        "objective": job.train["objective"],
        "labels": job.labels,
        "columns": manifest.columns.to_json(),
        "data": job.data,
        "data_digest": manifest.digest,
        "model_digest": model_digest,
        "virtual_ranks": job.virtual_ranks,
        "threads": job.threads,
    }
    folder = job.model_folder
    making = folder.with_name("model.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    torch.save(predictor.state_dict(), making / "weights.pt")
    (making / "model.json").write_text(json.dumps(described, indent=1))
    (making / "train.json").write_text(json.dumps(result))
    if job.code is not None:
        shutil.copytree(job.code, making / "code", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return result
