"""A trial's run in MLflow: a child of the search's, known whole before it is sent."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlflow.redact import redacted
from ddlflow.tracking import uris
from ddlflow.tracking.pending import send_spool
from ddlflow.tracking.records import EndStatus, MetricsLogged, ParamsLogged, RunBegan, RunEnded
from ddlflow.tracking.spool import Spool, now_ms


@dataclass(frozen=True, slots=True)
class Child:
    """What a child run says.

    Attributes:
        number: of the child: with its parent's id it names the run, so one that is sent twice is
            one run.
        name: what MLflow's page calls it.
        tags: of the run.
        params: its settings, by flat name.
        metrics: (step, values) in order.
        status: how it ended.
        seconds: that it took.
    """

    number: int
    name: str
    tags: Mapping[str, Any]
    params: Mapping[str, Any]
    metrics: Sequence[tuple[int, Mapping[str, float]]]
    status: EndStatus
    seconds: float


def log_child(
    root: Path,
    uri: str,
    experiment: str,
    parent: str,
    child: Child,
    *,
    away: dict[str, str] | None = None,
) -> str | None:
    """Writes a child run to a spool of its own and sends it; one that was written is not again.

    Args:
        root: the folder of all spools.
        uri: MLflow's tracking URI.
        experiment: of the parent.
        parent: its ``run_id`` or ``local_id``; the same one for the same child.
        child: what to log.
        away: stores that do not answer, with what they said: see ``send_spool``.

    Returns:
        None where MLflow has it; else a sentence: it waits, and the next command sends it.
    """
    id_ = hashlib.sha256(f"{parent} {child.number}".encode()).hexdigest()[:32]
    folder = root / f"trial-{id_}"
    began = now_ms() - int(1000 * child.seconds)
    written = root / f"children-{parent}"  # a search that goes on tells of its trials again
    if not folder.exists() and str(child.number) in _lines(written):
        return None
    spool = Spool(folder)
    try:
        if str(child.number) not in _lines(written):
            if next(spool.all_records(), None) is None:  # else a process was killed just here
                spool.append(
                    RunBegan(
                        t=began,
                        id=id_,
                        uri=redacted(uris.absolute(uri)),
                        experiment=experiment,
                        name=child.name,
                        tags={key: str(value) for key, value in child.tags.items()},
                        parent=parent,
                    )
                )
            params = {key: str(value) for key, value in child.params.items()}
            spool.append(ParamsLogged(began, params))
            for step, values in child.metrics:
                numbers = {key: float(value) for key, value in values.items()}
                spool.append(MetricsLogged(now_ms(), step, numbers))
            spool.append(RunEnded(now_ms(), child.status))
            with written.open("a") as file:
                file.write(f"{child.number}\n")
    finally:
        spool.close()
    said = send_spool(folder, uri, {} if away is None else away)
    if not folder.exists():
        return None
    spool = Spool(folder)
    is_sent = spool.is_sent and not spool.has_refused
    if is_sent:  # one that was pruned or failed is kept by `send_spool`, to be gone on with
        spool.remove()
    spool.close()
    return None if is_sent else said


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
