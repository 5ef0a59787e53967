"""What a training logs to: never waited for, never lost.

Each call appends one record to the run's spool (``spool.py``) and returns; a thread sends the
records to MLflow (``delivery.py``). While the server is away they wait in the spool, and what
waits at the end of the process is sent by ``send_pending`` when the next command starts.
"""

import logging
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ddlflow.errors import TrackingError
from ddlflow.redact import redacted
from ddlflow.tracking import uris
from ddlflow.tracking.records import (
    DatasetLogged,
    EndStatus,
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
)
from ddlflow.tracking.spool import Spool, now_ms

if TYPE_CHECKING:
    from ddlflow.tracking.delivery import Delivery

_REFUSED = re.compile(r"[^/\w.\- :]")  # what MLflow allows in no name of a setting

Say = Callable[[str], None]
ID_WAIT_S = 60.0  # for a slow server (a busy machine, a new database); one that is away: no time


def open_run(
    uri: str,
    spool: Path,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, Any],
    parent: str | None = None,
    resume: str | None = None,
    wait_s: float = ID_WAIT_S,
    say: Say | None = None,
) -> "Run":
    """Begin to log a run, or go on with the one whose spool this is.

    Args:
        uri: MLflow's tracking URI.
        spool: a folder of this run alone; give the same one again to go on with the run.
        experiment: made where it is missing.
        name: what MLflow's page calls the run.
        tags: set when the run is created.
        parent: the run that this one is a trial of, by its ``run_id`` or ``local_id``.
        resume: a run that goes on, by its ``run_id`` or ``local_id``, where its spool is gone.
        wait_s: how long to wait for the run's id. A server that is away is known at once; one
            that is slow (a busy machine, a new database) is worth the wait: its id is what a user
            is told.
        say: takes the few sentences for the user; a log warning if None.

    Raises:
        SpecError: The URI names no kind of store that MLflow can log to.
        TrackingError: The experiment was deleted, the run to resume is not there, or the spool
            is another process's or another store's. (An outage is no error.)
    """
    uri = uris.absolute(uri)
    # Here and not in the thread: two threads that import at once can see half a module.
    from ddlflow.tracking.delivery import Delivery

    say = say or logging.getLogger("ddlflow").warning
    opened = Spool(Path(spool).absolute())
    first = next(opened.all_records(), None)
    is_new = first is None
    try:
        if first is None:
            first = RunBegan(
                t=now_ms(),
                id=uuid.uuid4().hex,
                uri=redacted(uri),
                experiment=experiment,
                name=name,
                tags={key: str(value) for key, value in tags.items()},
                parent=parent,
                resume=resume,
            )
            opened.append(first)
        else:
            if not isinstance(first, RunBegan):
                raise TrackingError(
                    f"The tracking records in {opened.folder} are of another version of ddlflow. "
                    "Go on with that version, or start anew."
                )
            if first.uri != redacted(uri):
                raise TrackingError(
                    f"The run in {opened.folder} is kept in {first.uri}, not in "
                    f"{redacted(uri)}. Go on with the store it began in, or start anew."
                )
            opened.append(RunResumed(now_ms()))
        delivery = Delivery(uri, opened, say)
        run = Run(opened, delivery, first, say)
        delivery.start(wait_s)
    except TrackingError:
        if is_new:
            opened.remove()
        opened.close()
        raise
    return run


class Run:
    """One MLflow run. Its methods may be called from any thread and never wait for the server.

    Attributes:
        local_id: names the run while MLflow has not heard of it; its tag ``ddlflow.run`` after.
        started_ms: when it was first opened, in milliseconds since 1970.
    """

    def __init__(self, spool: Spool, delivery: "Delivery", first: RunBegan, say: Say) -> None:
        """Use ``open_run``."""
        self.local_id = first.id
        self.started_ms = first.t
        self._spool, self._delivery, self._say = spool, delivery, say
        self._logged = {
            (key, record.step)
            for record in spool.all_records()
            if isinstance(record, MetricsLogged)
            for key in record.values
        }
        self._status: tuple[EndStatus, int] | None = None
        self._is_closed = self._is_lost = False

    # ---- what is known -----------------------------------------------------------------------

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while the server has not created the run."""
        return self._spool.sent.run_id

    def id_for_people(self, wait_s: float = ID_WAIT_S) -> str:
        """The id to print: MLflow's, waited for while the server answers, else ``local_id``.

        Every command that takes a run's id takes either.
        """
        self._delivery.wait_for(lambda: self.run_id is not None, wait_s)
        return self.run_id or self.local_id

    @property
    def page(self) -> str:
        """The run's page on the server, or the command that shows it."""
        sent = self._spool.sent
        return uris.page(self._delivery.uri, sent.experiment_id, sent.run_id)

    # ---- what is logged ----------------------------------------------------------------------

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings, by flat name. A value that was logged cannot change; 6,000 characters stay.

        A user names some (``data.derive.delay (min)``): what MLflow allows in no name becomes _.
        """
        values = {_REFUSED.sub("_", key): str(value) for key, value in params.items()}
        self._append(ParamsLogged(now_ms(), values))

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags; a later value replaces an earlier one."""
        self._append(TagsLogged(now_ms(), {key: str(value) for key, value in tags.items()}))

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, timestamp_ms: int | None = None
    ) -> None:
        """Metrics of one step. In a run that goes on, a step that was logged stays as it was."""
        if self._logged:
            metrics = {key: v for key, v in metrics.items() if (key, step) not in self._logged}
        if metrics:
            values = {key: float(value) for key, value in metrics.items()}
            at = now_ms() if timestamp_ms is None else timestamp_ms
            self._append(MetricsLogged(at, int(step), values))

    def log_text(self, text: str, path: str) -> None:
        """A text artifact at ``path`` of the run's artifacts."""
        self._append(TextLogged(now_ms(), path, text))

    def log_file(self, path: Path, artifact_folder: str | None = None) -> None:
        """A file, or a folder's contents, as artifacts. It has to stay where it is until sent."""
        self._append(FileLogged(now_ms(), str(Path(path).absolute()), artifact_folder))

    def log_dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        schema: Mapping[str, str],
        profile: Mapping[str, Any],
        context: str,
    ) -> None:
        """A data set that the run read.

        Args:
            name: what the page calls it.
            digest: its fingerprint; MLflow keeps the first 36 characters.
            source: a path or a URL.
            schema: the type of each column, as text.
            profile: numbers that describe it (rows, bytes), JSON values.
            context: what it was read for: ``training``, ``evaluation``.
        """
        self._append(
            DatasetLogged(
                t=now_ms(),
                name=name,
                digest=digest,
                source=redacted(source),
                schema=dict(schema),
                profile=dict(profile),
                context=context,
            )
        )

    def log_model(self, record: ModelLogged, *, wait_s: float) -> str | None:
        """A model's URI, waited for as long as the server answers (see ``log_model.py``).

        Raises:
            TrackingError: MLflow will never take the record.
        """
        offset = self._append(record)
        return self._delivery.answer(offset, wait_s)

    # ---- how it ends -------------------------------------------------------------------------

    def set_terminated(self, status: EndStatus) -> None:
        """How the run ended; written by ``close``, with the time of this call."""
        self._status = (status, now_ms())

    def close(self, timeout_s: float = 10.0) -> None:
        """Write the end, send what is left, at most for ``timeout_s``; a second call does nothing.

        A run whose status was not set ends as KILLED. What could not be sent stays in the spool.
        """
        if self._is_closed:
            return
        self._is_closed = True
        status, time_ms = self._status or ("KILLED", now_ms())
        self._append(RunEnded(time_ms, status))
        # A run that failed or was stopped may go on, and needs its records for that.
        self._delivery.close(timeout_s, keep=status != "FINISHED" or self._is_lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is None:
            if kind is None:
                self.set_terminated("FINISHED")
            else:
                self.set_terminated("FAILED" if issubclass(kind, Exception) else "KILLED")
        self.close()

    def _append(self, record: SpoolRecord) -> int:
        """Write a record to the spool and wake the thread; returns the offset behind it."""
        if self._is_lost:
            return 0
        try:
            offset = self._spool.append(record)
        except (OSError, ValueError) as error:  # a full disk, or a call after close
            self._is_lost = True
            self._say(
                f"Tracking records can no longer be written to {self._spool.folder} ({error}). "
                "The run goes on, but what it logs from now on is lost."
            )
            return 0
        self._delivery.wake()
        return offset
