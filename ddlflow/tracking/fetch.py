"""A model's name into a folder: MLflow model URIs, and folders as they are."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from ddlflow.errors import SpecError, TrackingError
from ddlflow.tracking.uris import MODEL_FORMS


def fetch_model(model_uri: str, tracking_uri: str, to: Path) -> Path:
    """The ddlflow model folder that a URI means.

    Args:
        model_uri: one of MLflow's model URIs, or a folder: of ddlflow's format, or MLflow's.
        tracking_uri: the store in which ``runs:/`` and ``models:/`` are looked up.
        to: where a model that this machine does not see as files is downloaded to.

    Raises:
        SpecError: There is no such run, model, version, alias or folder, or it is not ddlflow's.
        TrackingError: The store does not answer, or its files are gone.
    """
    if not model_uri.startswith(("runs:/", "models:/")):
        folder = _local(model_uri)
        if folder is None or not folder.is_dir():
            raise SpecError(f"There is no model folder {model_uri!r}. Give {MODEL_FORMS}.")
        return _model_folder(folder, model_uri)
    # Here, and in a file of its own: a folder needs no MLflow, whose import takes a second.
    from ddlflow.tracking.registry import download, location_of

    location = location_of(model_uri, tracking_uri)
    folder = _local(location) or download(location, tracking_uri, to)
    if not folder.is_dir():
        raise TrackingError(
            f"The files of {model_uri} are gone from {folder}. Log the model again, or give the "
            "folder that has it."
        )
    return _model_folder(folder, model_uri)


def _local(uri: str) -> Path | None:
    """The path of a local URI or path; None for a URL."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri or parts.scheme == "mlflow-artifacts" else Path(uri)


def _model_folder(folder: Path, model_uri: str) -> Path:
    """The ddlflow model folder in a folder, which is one itself or MLflow's wrapping of one."""
    if (folder / "model.json").is_file():
        return folder
    description = folder / "MLmodel"
    if not description.is_file():
        raise SpecError(
            f"{model_uri} is no model: it holds neither model.json (ddlflow) nor MLmodel (MLflow)."
        )
    flavors = yaml.safe_load(description.read_text(encoding="utf-8")).get("flavors", {})
    artifacts = flavors.get("python_function", {}).get("artifacts") or {}
    path = (folder / str(artifacts.get("model", {}).get("path", ""))).resolve()
    if path.is_relative_to(folder.resolve()) and (path / "model.json").is_file():
        return path
    names = ", ".join(sorted(set(flavors) - {"python_function"})) or "python_function"
    raise SpecError(
        f"{model_uri} is an MLflow model of the kind {names}, which ddlflow did not train (it has "
        "no model.json) and does not load: such models are mostly pickles, which run any code "
        "when read. Predict with mlflow.pyfunc.load_model, or train the model with ddlflow."
    )
