"""A trained model into a run's spool, with the signature that its example and predictions give."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from ddlflow.errors import TrackingError
from ddlflow.tracking.records import ModelLogged
from ddlflow.tracking.run import Run
from ddlflow.tracking.spool import now_ms
from ddlflow.tracking.uris import MODEL_DIGEST_TAG, RUN_TAG

_NUMBERS = (
    DataType.boolean,
    DataType.integer,
    DataType.long,
    DataType.float,
    DataType.double,
)


def log_model(
    run: Run,
    folder: Path,
    *,
    example: pandas.DataFrame | None,
    predictions: pandas.DataFrame | None,
    digest: str,
    wheel: Path,
    pip_requirements: Sequence[str],
    register_as: str | None = None,
    tags: Mapping[str, str] | None = None,
    name: str = "model",
    wait_s: float = 60.0,
) -> str | None:
    """Log a ddlflow model folder as the run's model; through the spool, so an outage delays it.

    Args:
        run: the run that trained it.
        folder: the model folder (``model.json``, ...); it has to stay where it is until sent.
        example: a few rows of input, kept with the model and shown on its page; None: the model
            is logged without them and without a signature.
        predictions: what the model says to ``example``; with it, the model's signature.
        digest: of the model's parameters. A model of this run with the same digest is not logged
            again.
        wheel: this ddlflow, which the model carries and is served by; it has to stay as well.
        pip_requirements: what serving needs beside it. Given, because MLflow's search for it
            loads the model in a process of its own, which takes seconds.
        register_as: also a version of this registered model.
        tags: put on the model and on its version.
        name: the model's name within the run.
        wait_s: how long to wait for the server, which takes about a second.

    Returns:
        ``models:/NAME/VERSION`` if registered, else ``runs:/RUN/model``; None if the server is
        away (the model is sent later).

    Raises:
        TrackingError: no model folder, or MLflow will never take it.
    """
    if not (folder / "model.json").is_file():
        raise TrackingError(f"{folder} is no ddlflow model folder: it has no model.json.")
    record = ModelLogged(
        t=now_ms(),
        folder=str(folder.absolute()),
        name=name,
        signature=None,
        example=None,
        dtypes={},
        requirements=list(pip_requirements),
        register_as=register_as,
        tags={**(tags or {}), RUN_TAG: run.local_id, MODEL_DIGEST_TAG: digest},
        wheel=str(wheel.absolute()),
    )
    if example is not None and predictions is not None:
        record = replace(
            record,
            signature=_signature(example, predictions).to_dict(),
            example=json.loads(example.to_json(orient="split", double_precision=15)),
            dtypes={str(column): str(kind) for column, kind in example.dtypes.items()},
        )
    return run.log_model(record, wait_s=wait_s)


def _signature(example: pandas.DataFrame, predictions: pandas.DataFrame) -> ModelSignature:
    """Of the example, but for the width of numbers, which the model itself reads in any.

    MLflow would refuse a whole number as a float and the other way round, and so every frame in
    which a column of whole numbers misses one: pandas makes floats of it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*contains integer column", UserWarning)
        found = infer_signature(example, predictions)
    columns = [
        ColSpec(AnyType(), column.name, required=column.required)
        if column.type in _NUMBERS
        else column
        for column in found.inputs.inputs
    ]
    return ModelSignature(Schema(columns), found.outputs)
