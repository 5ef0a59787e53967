"""A model of the spool into MLflow, as a pyfunc model that is plain code and tensors, no pickle."""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature

from ddlflow.tracking.records import ModelLogged
from ddlflow.tracking.spool import Sent
from ddlflow.tracking.uris import MODEL_DIGEST_TAG

with warnings.catch_warnings():
    # MLflow's own chat agents warn of their type hints when they are defined.
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
    import mlflow.pyfunc

_SHOWN = 300  # characters of a reason


def send_model(
    client: MlflowClient, sent: Sent, record: ModelLogged, say: Callable[[str], None]
) -> str:
    """Make the MLflow model of a record that ``log_model`` wrote; returns its URI.

    Can be repeated: a model that came through is found by its digest, one that was cut off is
    deleted.
    """
    model = _model_sent(client, sent, record) or _create(client, sent, record, say)
    if record.register_as is None:
        return f"runs:/{sent.run_id}/{record.name}"
    return _register(client, sent, record, model)


def _model_sent(client: MlflowClient, sent: Sent, record: ModelLogged) -> Any | None:
    """The model of this record, if an earlier attempt got it through."""
    digest = record.tags[MODEL_DIGEST_TAG]
    models = client.search_logged_models([sent.experiment_id], f"source_run_id = '{sent.run_id}'")
    outputs = client.get_run(sent.run_id).outputs
    known = {output.model_id for output in outputs.model_outputs} if outputs else set()
    for model in models:
        if model.name != record.name or model.tags.get(MODEL_DIGEST_TAG) != digest:
            continue
        if str(model.status) == "READY" and model.model_id in known:
            return model
        client.delete_logged_model(model.model_id)
    return None


def _create(
    client: MlflowClient, sent: Sent, record: ModelLogged, say: Callable[[str], None]
) -> Any:
    """A logged model: made, filled, linked to its run, and last marked ready.

    One that cannot be filled is taken away again: its URI would lead to nothing.
    """
    model = client.create_logged_model(
        sent.experiment_id, record.name, source_run_id=sent.run_id, tags=record.tags
    )
    parent = Path(tempfile.mkdtemp(prefix="ddlflow-model-"))
    try:
        try:
            _save(parent / "model", model, record)
        except MlflowException as error:
            # MLflow tries the example against the signature, and there are column names that it
            # cannot read back (an empty one). The model itself is as good without them.
            shutil.rmtree(parent / "model", ignore_errors=True)
            _save(parent / "model", model, replace(record, example=None, signature=None))
            said = _reason(str(error.message))
            say(f"note: the model is logged without signature and example: {said}.")
        client.log_model_artifacts(model.model_id, str(parent / "model"))
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            client.delete_logged_model(model.model_id)
        raise
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(sent.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def _reason(said: str) -> str:
    """Why MLflow does not take an example, in one line: it puts the whole example before that."""
    *_, reason = " ".join(said.split()).rpartition(" Error: ")
    return (reason if len(reason) <= _SHOWN else f"... {reason[-_SHOWN:]}").rstrip(". ")


def _save(path: Path, model: Any, record: ModelLogged) -> None:
    """Write MLflow's model format: its description, this package's served.py, and the folder."""
    example, signature = None, None
    if record.example is not None and record.signature is not None:
        example = pandas.DataFrame(**record.example).astype(record.dtypes)
        signature = ModelSignature.from_dict(record.signature)
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"model": record.folder},
        signature=signature,
        input_example=example,
        pip_requirements=list(record.requirements),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
    )
    if record.wheel is not None:  # spools of earlier versions have none
        _carry(path, Path(record.wheel))


def _carry(path: Path, wheel: Path) -> None:
    """Puts the wheel into the model, and its place there first into what serving installs.

    MLflow and pip resolve it from the model's folder, in which the list is installed.
    """
    (path / "wheels").mkdir()
    shutil.copyfile(wheel, path / "wheels" / wheel.name)
    listed = path / "requirements.txt"
    listed.write_text(f"wheels/{wheel.name}\n{listed.read_text()}")
    described = path / "conda.yaml"
    environment = yaml.safe_load(described.read_text())
    for dependency in environment["dependencies"]:
        if isinstance(dependency, dict) and "pip" in dependency:
            dependency["pip"].insert(0, f"wheels/{wheel.name}")
    described.write_text(yaml.safe_dump(environment, sort_keys=False))


def _register(client: MlflowClient, sent: Sent, record: ModelLogged, model: Any) -> str:
    name = record.register_as
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{sent.run_id}'")
    digest = record.tags[MODEL_DIGEST_TAG]
    version = next(
        (v for v in versions if v.tags.get(MODEL_DIGEST_TAG) == digest),
        None,
    )
    if version is None:
        # The place itself, not models:/ID: MLflow looks an ID up in the process's global store.
        version = client.create_model_version(
            name,
            model.artifact_location,
            run_id=sent.run_id,
            tags=record.tags,
            model_id=model.model_id,
        )
    return f"models:/{name}/{version.version}"
