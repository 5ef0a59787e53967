"""A spool into MLflow, record by record, so that sending one twice changes nothing.

MLflow keeps one copy of equal metrics (key, step, time, value), of equal params and of equal
dataset inputs; tags and artifacts overwrite. The run itself carries its local id as the tag
``ddlflow.run``, by which it is looked up when an answer was lost.
"""

import getpass
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ddlflow.errors import TrackingError
from ddlflow.tracking.connect import REFUSALS, connect, experiment_of, one_sentence
from ddlflow.tracking.records import (
    DatasetLogged,
    FileLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RunBegan,
    RunEnded,
    RunResumed,
    SpoolRecord,
    TagsLogged,
    TextLogged,
    UnknownRecord,
)
from ddlflow.tracking.spool import Sent, Spool
from ddlflow.tracking.uris import RUN_TAG

from mlflow import MlflowClient, entities  # isort: skip - after connect, which prepares it
from mlflow.exceptions import MlflowException  # isort: skip

# MLflow's limits for one request, and for one value of its oldest supported servers.
_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100
_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH, _MAX_DIGEST_LENGTH = 6000, 5000, 36
_BATCHED = (MetricsLogged, ParamsLogged, TagsLogged)


class Outage(Exception):  # noqa: N818 - a state of the server, not an error of anybody's
    """The server did not take a record, and may do so later. The text holds no secret."""


class Refused(Exception):  # noqa: N818
    """The server will never take this record. The text holds no secret."""


@dataclass(slots=True)
class Sender:
    """Sends one spool to one store. Used by one thread at a time."""

    uri: str
    spool: Spool
    say: Callable[[str], None]
    answers: dict[int, str] = field(default_factory=dict)  # offset behind a model -> its URI
    refusals: dict[int, str] = field(default_factory=dict)  # offset behind a record -> the reason
    _client: Any = None

    def deliver(self) -> None:
        """Send all that waits, and remember after each request how far it came.

        Raises:
            Outage: The server does not take more now.
            TrackingError: The run cannot be created: it needs the user.
        """
        while records := self.spool.waiting():
            for group in _groups(records):
                self._deliver_group(group)

    def _deliver_group(self, group: list[tuple[SpoolRecord, int]]) -> None:
        try:
            self._call([record for record, _ in group], group[-1][1])
        except Refused as reason:
            if len(group) > 1:  # find the one that is wrong
                for pair in group:
                    self._deliver_group([pair])
                return
            if not self.spool.has_refused:
                self.say(
                    f"MLflow does not take a record of this run: {reason} It is kept in "
                    f"{self.spool.folder / 'refused.jsonl'}, and the run goes on."
                )
            self.spool.refuse(group[0][0], str(reason))
            self.refusals[group[0][1]] = str(reason)
        self.spool.save(replace(self.spool.sent, offset=group[-1][1]))

    def _call(self, records: list[SpoolRecord], offset: int) -> None:
        """One request or a few for records of one kind; MLflow's errors become ours."""
        try:
            if self._client is None:
                self._client = connect(self.uri)
            first = records[0]
            if isinstance(first, RunBegan):
                self.spool.save(self._created(first))
            elif isinstance(first, _BATCHED):
                _send_batch(self._client, self._run_id, records)
            else:
                answer = _send_one(self._client, self.spool.sent, first, self.say)
                if answer is not None:
                    self.answers[offset] = answer
        except (TrackingError, Refused, Outage):
            raise
        except MlflowException as error:
            text = one_sentence(error.message, self.uri)
            if error.error_code in REFUSALS:
                raise Refused(text) from None
            raise Outage(text) from None
        except FileNotFoundError as error:
            raise Refused(f"{error.filename} is gone.") from None
        except Exception as error:  # whatever a store's driver raises, the run goes on
            raise Outage(one_sentence(f"{type(error).__name__}: {error}", self.uri)) from None

    @property
    def _run_id(self) -> str:
        run_id = self.spool.sent.run_id
        if run_id is None:
            raise Refused("The run that it belongs to was refused.")
        return run_id

    def _created(self, record: RunBegan) -> Sent:
        """The run of this spool in MLflow: resumed, found, or made with its own start time."""
        client, sent = self._client, self.spool.sent
        experiment_id = experiment_of(client, self.uri, record.experiment)
        if record.resume is not None:
            run = _find(client, experiment_id, record.resume)
            if run is None:
                raise TrackingError(
                    f"Run {record.resume} is not in the tracking store, so it cannot go on "
                    "there. Start the run anew, or name the store that has it."
                )
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = _find(client, experiment_id, record.id) if sent.creating else None
        if run is None:
            tags = {"mlflow.user": _user(), **record.tags, RUN_TAG: record.id}
            if record.parent is not None:
                parent = _find(client, experiment_id, record.parent)
                if parent is None:
                    raise Outage("its parent run has not arrived yet.")
                tags["mlflow.parentRunId"] = parent.info.run_id
            self.spool.save(replace(sent, creating=True))
            run = client.create_run(
                experiment_id, start_time=record.t, tags=_cut(tags), run_name=record.name
            )
        return replace(sent, run_id=run.info.run_id, experiment_id=run.info.experiment_id)


def _find(client: MlflowClient, experiment_id: str, either_id: str) -> Any | None:
    """The run of MLflow's id or of ours."""
    runs = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{either_id}'", max_results=1)
    if runs:
        return runs[0]
    try:
        return client.get_run(either_id)
    except MlflowException as error:
        if error.error_code in REFUSALS:
            return None
        raise


def _groups(records: list[tuple[SpoolRecord, int]]) -> Iterator[list[tuple[SpoolRecord, int]]]:
    """Records cut into requests: neighbours of one batched kind together, all others alone."""
    group: list[tuple[SpoolRecord, int]] = []
    num_values = 0
    for record, offset in records:
        is_batched = isinstance(record, _BATCHED)
        size = len(record.values) if isinstance(record, _BATCHED) else 0
        fits = group and type(record) is type(group[0][0]) and num_values + size <= _MAX_METRICS
        if group and not (is_batched and fits):
            yield group
            group, num_values = [], 0
        group.append((record, offset))
        num_values += size
    if group:
        yield group


def _send_batch(client: MlflowClient, run_id: str, records: list[SpoolRecord]) -> None:
    if isinstance(records[0], MetricsLogged):
        metrics = (
            entities.Metric(key, float(value), record.t, record.step)
            for record in records
            if isinstance(record, MetricsLogged)  # as they all are
            for key, value in record.values.items()
        )
        for part in _parts(metrics, _MAX_METRICS):
            client.log_batch(run_id, metrics=part)
        return
    values: dict[str, str] = {}
    for record in records:
        if isinstance(record, ParamsLogged | TagsLogged):
            values |= record.values
    if isinstance(records[0], ParamsLogged):
        params = (entities.Param(k, v[:_MAX_PARAM_LENGTH]) for k, v in values.items())
        for part in _parts(params, _MAX_PARAMS):
            client.log_batch(run_id, params=part)
    else:
        tags = (entities.RunTag(k, v) for k, v in _cut(values).items())
        for part in _parts(tags, _MAX_TAGS):
            client.log_batch(run_id, tags=part)


def _send_one(
    client: MlflowClient, sent: Sent, record: SpoolRecord, say: Callable[[str], None]
) -> str | None:
    run_id = sent.run_id
    if run_id is None:
        raise Refused("The run that it belongs to was refused.")
    match record:
        case TextLogged():
            client.log_text(run_id, record.text, record.path)
        case FileLogged():
            path = Path(record.path)
            if not path.exists():
                raise Refused(f"{path} is gone.")
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), record.folder)
        case DatasetLogged():
            client.log_inputs(run_id, datasets=[_dataset(record)])
        case ModelLogged():
            from ddlflow.tracking.send_model import send_model

            return send_model(client, sent, record, say)
        case RunResumed():
            client.update_run(run_id, status="RUNNING")
        case RunEnded():
            client.set_terminated(run_id, status=record.status, end_time=record.t)
        case UnknownRecord():
            raise Refused(f"This version of ddlflow knows no record {record.op!r}.")
    return None


def _dataset(record: DatasetLogged) -> Any:
    columns = [{"name": name, "type": kind} for name, kind in record.schema.items()]
    dataset = entities.Dataset(
        name=record.name[:500],
        digest=record.digest[:_MAX_DIGEST_LENGTH],
        source_type="local" if "://" not in record.source else "uri",
        source=json.dumps({"uri": record.source}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps(record.profile),
    )
    context = entities.InputTag("mlflow.data.context", record.context)
    return entities.DatasetInput(dataset, [context])


def _parts(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(islice(items, size)):
        yield part


def _cut(tags: dict[str, str]) -> dict[str, str]:
    return {key: value[:_MAX_TAG_LENGTH] for key, value in tags.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"
