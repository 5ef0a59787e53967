"""A run that is recorded in MLflow, read back as plain values."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError, TrackingError
from ddlflow.redact import redacted
from ddlflow.tracking.connect import REFUSALS, connect, one_sentence
from ddlflow.tracking.uris import RUN_TAG, database_path


@dataclass(frozen=True, slots=True)
class Recorded:
    """What MLflow holds of a run.

    Attributes:
        run_id: MLflow's.
        experiment_id: MLflow's.
        experiment: its name.
        name: of the run, as the page shows it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: settings by dotted name.
        tags: ddlflow's own without their prefix.
        metrics: the last value of each.
    """

    run_id: str
    experiment_id: str
    experiment: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


class Reader:
    """Reads runs of one tracking store.

    Raises:
        SpecError: a database that does not exist; reading makes none.
    """

    def __init__(self, uri: str) -> None:
        path = database_path(uri)
        if path is not None and not path.exists():
            raise SpecError(
                f"{redacted(uri)} does not exist: no run is recorded there. Set tracking.uri in "
                "the site file (--on SITE), or stand in the project's folder."
            )
        self._uri = uri
        self._client = connect(uri)

    def run(self, run_id: str) -> Recorded:
        """A run by its id: MLflow's, or what ddlflow called it while the server was away.

        Raises:
            SpecError: there is none.
            TrackingError: the store does not answer.
        """
        with self._asked(
            f"{redacted(self._uri)} has no run {run_id}.",
            "Take an id that `ddlflow run` printed, or one from MLflow's page.",
        ):
            found = self._found(run_id)
            experiment = self._client.get_experiment(found.info.experiment_id)
        prefix = "ddlflow."
        return Recorded(
            run_id=found.info.run_id,
            experiment_id=found.info.experiment_id,
            experiment=experiment.name,
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

    def _found(self, run_id: str) -> Any:
        """The run of this id, or the one that was called so before MLflow gave it an id."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in REFUSALS or not run_id.isalnum():  # it becomes a filter
                raise
            experiments = [one.experiment_id for one in self._client.search_experiments()]
            wanted = f"tags.`{RUN_TAG}` = '{run_id}'"
            runs = self._client.search_runs(experiments, wanted, max_results=1)
            if not runs:
                raise
            return runs[0]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, in order.

        Raises:
            SpecError: there is no such run.
            TrackingError: the store does not answer.
        """
        with self._asked(f"{redacted(self._uri)} has no run {run_id}.", "Take another id."):
            found = self._client.get_metric_history(run_id, metric)
        return sorted((entry.step, entry.value) for entry in found)

    def has(self, run_id: str, path: str) -> bool:
        """Whether a run has an artifact of this name at its top.

        Raises:
            SpecError: there is no such run.
            TrackingError: the store does not answer.
        """
        with self._asked(f"{redacted(self._uri)} has no run {run_id}.", "Take another id."):
            return any(entry.path == path for entry in self._client.list_artifacts(run_id))

    def files(self, run_id: str, path: str, to: Path) -> Path:
        """Downloads an artifact, a file or a folder, and returns where it lies.

        Raises:
            SpecError: the run has none of that name.
            TrackingError: the store does not answer.
        """
        with self._asked(
            f"Run {run_id} has no {path} among its artifacts in {redacted(self._uri)}.",
            "It was not made by `ddlflow run`, or its artifacts were deleted: take another run.",
        ):
            return Path(self._client.download_artifacts(run_id, path, str(to)))

    def json(self, run_id: str, path: str, to: Path) -> Any:
        """A JSON artifact's value.

        Raises:
            SpecError: the run has none of that name, or it is no JSON.
            TrackingError: the store does not answer.
        """
        text = self.files(run_id, path, to).read_bytes()
        try:
            return json.loads(text)
        except ValueError as error:
            raise SpecError(
                f"{path} of run {run_id} is damaged: it is no JSON ({error}). Take another run."
            ) from None

    @contextmanager
    def _asked(self, missing: str, instead: str) -> Iterator[None]:
        """Says what is missing where the store has not got it, else why it did not answer."""
        # At the top it would come before what connect.py sets for MLflow's import.
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            known = getattr(error, "error_code", "")
            if known in REFUSALS or isinstance(error, FileNotFoundError):
                raise SpecError(f"{missing} {instead}") from None
            raise TrackingError(
                f"{redacted(self._uri)} does not answer: {one_sentence(error, self._uri)} The same "
                "command may succeed later."
            ) from None
