"""Where MLflow keeps the model that a ``runs:/`` or ``models:/`` URI means."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError, TrackingError
from ddlflow.redact import redacted
from ddlflow.tracking.connect import REFUSALS, connect, one_sentence
from ddlflow.tracking.uris import MODEL_FORMS, absolute, database_path

import mlflow.artifacts  # isort: skip - after connect, which prepares MLflow
from mlflow import MlflowClient  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip
from sqlalchemy.exc import SQLAlchemyError  # isort: skip


def location_of(model_uri: str, tracking_uri: str) -> str:
    """The artifact location, a path or a URL, of the model.

    Raises:
        SpecError: There is no such run, model, version or alias.
        TrackingError: The store does not answer.
    """
    tracking_uri = absolute(tracking_uri)
    database = database_path(tracking_uri)
    if database is not None and not database.exists():
        raise SpecError(
            f"{model_uri} cannot be found: there is no tracking database {database}. "
            "Name the site whose tracking.uri has it, or give the model's folder."
        )
    with _explained(model_uri, tracking_uri):
        return _location(connect(tracking_uri), model_uri)


def download(location: str, tracking_uri: str, to: Path) -> Path:
    """Copy the artifacts at a URL into a folder; returns the folder that has them."""
    to.mkdir(parents=True, exist_ok=True)
    with _explained(location, tracking_uri):
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=str(to), tracking_uri=absolute(tracking_uri)
            )
        )


@contextmanager
def _explained(what: str, tracking_uri: str) -> Iterator[None]:
    """MLflow's errors as ours: what is not there is the user's, the rest is the server's."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = one_sentence(error, tracking_uri)
        if getattr(error, "error_code", None) in REFUSALS:
            raise SpecError(f"There is no model {what}: {text} Give {MODEL_FORMS}.") from None
        raise TrackingError(
            f"{what} cannot be fetched from {redacted(tracking_uri)}: {text}"
        ) from None


def _location(client: MlflowClient, model_uri: str) -> str:
    """Where the artifacts of a runs:/ or models:/ URI are."""
    kind, _, rest = model_uri.partition(":/")
    rest = rest.strip("/")
    if kind == "runs":
        run_id, _, path = rest.partition("/")
        return _location_in_run(client, run_id, path)
    if re.fullmatch(r"m-[0-9a-f]+", rest):
        return str(client.get_logged_model(rest).artifact_location)
    name, at, alias = rest.partition("@")
    if at:
        version = _aliased(client, name, alias)
    else:
        name, _, version = rest.partition("/")
        if not name or not version:
            raise SpecError(f"{model_uri!r} names no version. Give {MODEL_FORMS}.")
        version = _checked_version(client, name, version)
    location = str(client.get_model_version_download_uri(name, version))
    is_uri = location.startswith(("runs:/", "models:/"))
    return _location(client, location) if is_uri else location


def _location_in_run(client: MlflowClient, run_id: str, path: str) -> str:
    run = client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [client.get_logged_model(output.model_id) for output in outputs]
    for model in reversed(models):  # the last one logged under a name is the one it means
        if model.name == path:
            return str(model.artifact_location)
    if path and client.list_artifacts(run_id, path):  # as MLflow 2 logged models
        return f"{run.info.artifact_uri.rstrip('/')}/{path}"
    names = sorted({model.name for model in models})
    has = f"It has {', '.join(names)}." if names else "It has no model: its training did not end."
    raise SpecError(f"Run {run_id} has no model {path!r}. {has}")


def _aliased(client: MlflowClient, name: str, alias: str) -> str:
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
    aliases = sorted(_registered(client, name).aliases)
    has = f"It has {', '.join(aliases)}." if aliases else "It has none; give a version instead."
    raise SpecError(f"The registered model {name} has no alias {alias!r}. {has}")


def _checked_version(client: MlflowClient, name: str, version: str) -> str:
    _registered(client, name)
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    versions = sorted(int(one.version) for one in found)
    if versions and version == "latest":
        return str(versions[-1])
    if version.isdigit() and int(version) in versions:
        return version
    has = f"The newest is {versions[-1]}." if versions else "It has none."
    raise SpecError(f"The registered model {name} has no version {version!r}. {has}")


def _registered(client: MlflowClient, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
    names = [model.name for model in client.search_registered_models(max_results=1000)]
    near = difflib.get_close_matches(name, names, n=3) or sorted(names)[:5]
    has = (
        f"There are: {', '.join(near)}." if near else "None is registered; use runs:/RUN_ID/model."
    )
    raise SpecError(f"There is no registered model {name!r}. {has}")
