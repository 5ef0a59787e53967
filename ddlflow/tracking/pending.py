"""What earlier runs could not send: a server that was away, a process that was killed."""

from contextlib import suppress
from pathlib import Path

from ddlflow.errors import TrackingError
from ddlflow.redact import redacted
from ddlflow.tracking.records import RunBegan, RunEnded, RunResumed, SpoolRecord
from ddlflow.tracking.spool import Spool, unfinished
from ddlflow.tracking.uris import absolute


def send_pending(root: Path, uri: str | None = None) -> list[str]:
    """Send what the spools in ``root/*`` still hold; a run that was killed ends as KILLED.

    Costs next to nothing, and imports no MLflow, when nothing waits. A run of a process that is
    alive is left alone. A store that does not answer is asked once.

    Args:
        root: the folder whose folders are spools.
        uri: the site's tracking URI, for stores whose URI holds a password: spools hold none.

    Returns:
        One sentence a run that was sent, or that still waits.
    """
    away: dict[str, str] = {}
    return [
        sentence
        for folder in unfinished(root)
        if (sentence := send_spool(folder, uri, away)) is not None
    ]


def waiting(root: Path) -> list[Path]:
    """The folders in ``root/*`` that hold what MLflow lacks, but those of processes alive."""
    found = []
    for folder in unfinished(root):
        with suppress(TrackingError):
            Spool(folder).close()
            found.append(folder)
    return found


def send_spool(folder: Path, uri: str | None, away: dict[str, str]) -> str | None:
    """Send what one spool still holds, and remove it where that was all.

    Args:
        folder: of the spool.
        uri: see `send_pending`.
        away: stores that do not answer, with what they said; they are not asked again.

    Returns:
        One sentence; None where there is nothing to say, or its process is alive.
    """
    try:
        spool = Spool(folder)
    except TrackingError:
        return None  # its process is alive
    try:
        return _send_open_spool(spool, uri, away)
    finally:
        spool.close()


def _send_open_spool(spool: Spool, uri: str | None, away: dict[str, str]) -> str | None:
    from ddlflow.tracking.send import Outage, Sender

    records = list(spool.all_records())
    first = next(iter(records), None)
    if not isinstance(first, RunBegan):
        return None
    if _last_status(records) is None:
        spool.append(RunEnded(max(record.t for record in records), "KILLED"))
    num_waiting = spool.num_waiting()
    waits = f"{num_waiting} tracking records of the run {first.name} wait in {spool.folder}: "
    if uri is not None and redacted(absolute(uri)) == first.uri:
        target = absolute(uri)
    elif "***" in first.uri:
        return f"{waits}they are for {first.uri}; use a site with that tracking.uri."
    else:
        target = first.uri
    if target in away:
        return waits + away[target]
    said: list[str] = []
    try:
        Sender(target, spool, said.append).deliver()
    except (Outage, TrackingError) as reason:
        if isinstance(reason, Outage):
            away[target] = f"{first.uri} does not answer: {reason}"
            return waits + away[target]
        return waits + str(reason)
    sent = f"{num_waiting} tracking records of the earlier run {first.name} were sent."
    if _last_status(records) == "FINISHED" and not spool.has_refused:
        spool.remove()
    return " ".join([sent, *said])


def _last_status(records: list[SpoolRecord]) -> str | None:
    """How the run ended, or None if it did not say so."""
    last = next(r for r in reversed(records) if isinstance(r, RunBegan | RunResumed | RunEnded))
    return last.status if isinstance(last, RunEnded) else None
