"""A run that is recorded in MLflow, read back as plain values."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ddlflow.errors import TrackingError
from ddlflow.tracking.connect import connect
from ddlflow.tracking.store import redacted


@dataclass(frozen=True, slots=True)
class Recorded:
    """What MLflow holds of a run.

    Attributes:
        run_id: MLflow's.
        experiment_id: MLflow's.
        name: of the run, as the page shows it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: settings by dotted name.
        tags: ddlflow's own without their prefix.
        metrics: the last value of each.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


class Reader:
    """Reads runs of one tracking store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient = connect(uri)

    def run(self, run_id: str) -> Recorded:
        """A run by its id.

        Raises:
            TrackingError: there is none, or the store does not answer.
        """
        try:
            found: Run = self._client.get_run(run_id)
        except MlflowException as error:
            raise TrackingError(
                f"{redacted(self._uri)} has no run {run_id}: {str(error).splitlines()[0]} Take an "
                "id that `ddlflow run` printed, or one from MLflow's page."
            ) from None
        prefix = "ddlflow."
        return Recorded(
            run_id=run_id,
            experiment_id=found.info.experiment_id,
            name=found.info.run_name,
            status=found.info.status,
            params=dict(found.data.params),
            tags={
                k.removeprefix(prefix): v
                for k, v in found.data.tags.items()
                if k.startswith(prefix)
            },
            metrics=dict(found.data.metrics),
        )

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, in order."""
        found = self._client.get_metric_history(run_id, metric)
        return sorted((entry.step, entry.value) for entry in found)

    def has(self, run_id: str, path: str) -> bool:
        """Whether a run has an artifact of this name at its top."""
        return any(entry.path == path for entry in self._client.list_artifacts(run_id))

    def files(self, run_id: str, path: str, to: Path) -> Path:
        """Downloads an artifact, a file or a folder, and returns where it lies.

        Raises:
            TrackingError: the run has none of that name.
        """
        try:
            return Path(self._client.download_artifacts(run_id, path, str(to)))
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"Run {run_id} has no {path} among its artifacts in {redacted(self._uri)}: "
                f"{str(error).splitlines()[0]}"
            ) from None

    def json(self, run_id: str, path: str, to: Path) -> Any:
        """A JSON artifact's value."""
        return json.loads(self.files(run_id, path, to).read_text())

    def yaml(self, run_id: str, path: str, to: Path) -> Any:
        """A YAML artifact's value."""
        return yaml.safe_load(self.files(run_id, path, to).read_text())
