"""Tracking URIs: which are allowed, and where they point."""

import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ddlflow.errors import SpecError
from ddlflow.redact import redacted

MODEL_FORMS = (
    "runs:/RUN_ID/model, models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, "
    "models:/m-MODEL_ID, or a folder"
)
RUN_TAG = "ddlflow.run"  # what a run is called while MLflow has not heard of it
MODEL_DIGEST_TAG = "ddlflow.model_digest"  # of a logged model: one that came through is found by it
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# A server that does not answer is waited out by the spool, not inside one request. A retry inside
# MLflow's HTTP layer could also create a run twice, which the spool's own retry looks up first.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def prepare_mlflow() -> None:
    """Set this process's defaults for MLflow; to be called before its first import.

    A variable that the user has set stays as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Creating a database logs some 60 lines at INFO, and a locked one a traceback a try, which
    # the sender reports in one line of its own.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)


def absolute(uri: str) -> str:
    """The same store, whatever the working directory becomes.

    Raises:
        SpecError: The URI names no kind of store that MLflow can log to.
    """
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in ("http", "https") or (scheme in _DATABASES and scheme != "sqlite"):
        return uri
    path = database_path(uri)
    if path is not None:
        return f"sqlite:///{path}"
    raise SpecError(
        f"tracking.uri is {redacted(uri)!r}, which MLflow cannot log to. Give a server "
        "(http://host:5000), or a database (sqlite:///folder/mlflow.db, postgresql://...)."
    )


def database_path(uri: str) -> Path | None:
    """The file of a SQLite URI, absolute; None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    path = uri.removeprefix("sqlite:///").split("?")[0]
    return Path(path).absolute() if path and path != ":memory:" else None


def without_secrets(text: str, uri: str) -> str:
    """An error's text without the secrets of the URI that it may quote."""
    text = text.replace(uri, redacted(uri))
    user_info = urlsplit(uri).netloc.rpartition("@")[0]
    for secret in (user_info, user_info.partition(":")[2]):
        if secret:
            text = text.replace(secret, "***")
    return text


def page(uri: str, experiment_id: str | None, run_id: str | None) -> str:
    """Where to look at a run: its page on a server, or the command that opens a database.

    ``experiment_id`` and ``run_id`` are None for a run that the server has not heard of yet.
    """
    if not uri.startswith(("http://", "https://")):
        return f"mlflow ui --backend-store-uri {shlex.quote(redacted(uri))}"
    parts = urlsplit(uri)
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if experiment_id is None or run_id is None:
        return address
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def compare_page(uri: str, runs: Sequence[tuple[str, str]]) -> str:
    """MLflow's page that compares runs, given as (experiment id, run id); or how to open it."""
    experiments = json.dumps(sorted({experiment for experiment, _ in runs}), separators=(",", ":"))
    ids = json.dumps([run for _, run in runs], separators=(",", ":"))
    place = f"#/compare-runs?runs={ids}&experiments={experiments}"
    if not uri.startswith(("http://", "https://")):
        return f"ddlflow ui, and there {place}"
    return f"{page(uri, None, None).rstrip('/')}/{place}"
