"""The proof, from what the ranks wrote down, that each row came once an epoch.

And that these rows are those that were prepared: the shards on the site's storage are read.

A step belongs to the last attempt that did it: an attempt goes on from a checkpoint, and does the
steps behind it again. For every epoch the rows of its steps have to add up, in number and in mark,
to those of the training split.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddlflow.data.shards.manifest import Manifest, Shard
from ddlflow.data.shards.verified import check
from ddlflow.errors import DataError, SpecError
from ddlflow.history.artifacts import recorded_training
from ddlflow.report.screen import Screen
from ddlflow.runs.finished import STAGE_FILE
from ddlflow.runs.session import Session
from ddlflow.spec.load import load_site, request_of_site
from ddlflow.store import documents
from ddlflow.store.site_storage import storage_of
from ddlflow.store.store import Store
from ddlflow.tracking.read import Reader
from ddlflow.train.saved.ledger import RankLedger, read


class Totals(Protocol):
    """What the rows of a training have to add up to: of its result, in whatever form that is.

    Attributes:
        epochs: that were trained.
        steps: of the optimizer, over all epochs.
        rows: trained on in an epoch.
        rows_mark: of all of them.
    """

    @property
    def epochs(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def rows_mark(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt did.

    Attributes:
        name: its place in time (nanoseconds since 1970).
        world: its ranks.
        first: (epoch, step) of its first step, both from 1.
        last: of its last step.
        steps: how many it did.
        kept: how many of them no later attempt did again.
    """

    name: str
    world: int
    first: tuple[int, int]
    last: tuple[int, int]
    steps: int
    kept: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What the ledgers say of a training.

    Attributes:
        run_id: MLflow's.
        rows: of the training split.
        epochs: that were trained.
        steps: that count, over all epochs.
        attempts: in their order.
        faults: sentences; none means that every row came once an epoch, and that no shard is
            damaged.
        shards: how many were read, or None: the data set is not on this storage.
    """

    run_id: str
    rows: int
    epochs: int
    steps: int
    attempts: list[Attempt]
    faults: list[str]
    shards: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": not self.faults}


def audit(run_id: str, *, on: str = "local") -> Audit:
    """Audits the training of a recorded run, from its MLflow record alone.

    Raises:
        SpecError: no such run, or one without ledgers.
    """
    site = load_site(on)
    reader = Reader(site.tracking.uri)
    recorded = reader.run(run_id)
    run_id = recorded.run_id  # MLflow's, if the name given was an older one
    if recorded.status != "FINISHED" or not reader.has(run_id, "training"):
        raise SpecError(
            f"Run {run_id} is {recorded.status} and has no finished training to audit. Give a run "
            "that `ddlflow run` finished."
        )
    place = storage_of(site) / "audit" / run_id
    place.mkdir(parents=True, exist_ok=True)
    trained = recorded_training(reader, run_id, place)
    folder = reader.files(run_id, "training/ledger", place)
    found = audit_ledgers(run_id, folder, trained)
    with Session(request_of_site(on), Screen()) as session:
        num_shards, damaged = _shards(session, recorded.tags["data_digest"])
    return replace(found, faults=[*found.faults, *damaged], shards=num_shards)


def _shards(session: Session, digest: str) -> tuple[int | None, list[str]]:
    """Reads the shards of the data set of this digest: how many, and what is wrong with them."""
    prepared = session.store.at("prepare")
    for key in prepared.parts():
        folder = prepared.at(key)
        stage = documents.load(folder, STAGE_FILE) or {}
        if stage.get("value", {}).get("digest") != digest:
            continue
        if session.keep(folder):
            shards = Manifest.load(folder).shards
            return len(shards), list(_damaged(folder, shards))
    return None, []


def _damaged(folder: Store, shards: Iterable[Shard]) -> Iterator[str]:
    for file in (one for shard in shards for one in shard.files):
        try:
            check(folder.local(file.path, file.sha256), file.sha256)
        except DataError as error:
            yield str(error)


def audit_ledgers(run_id: str, folder: Path, trained: Totals) -> Audit:
    """Audits the ledgers in a folder against what the training says of itself.

    Args:
        run_id: for the answer.
        folder: with the ledgers of all attempts and ranks.
        trained: what the training said at its end.
    """
    entries = list(read(folder))
    steps = trained.steps
    per_epoch = steps // max(trained.epochs, 1)
    last = _last_attempts(entries, per_epoch, steps)
    faults = [*_gaps(last, per_epoch), *_rows(entries, last, trained, per_epoch)]
    names = list(dict.fromkeys(entry.attempt for entry in entries))
    attempts = [
        _attempt(name, [e for e in entries if e.attempt == name], int((last == k).sum()))
        for k, name in enumerate(names)
    ]
    return Audit(run_id, trained.rows, trained.epochs, steps, attempts, faults)


def _last_attempts(
    entries: Sequence[RankLedger], per_epoch: int, steps: int
) -> "np.ndarray[Any, Any]":
    """For each step of the training, the number of the last attempt that did it; -1: none."""
    last = np.full(steps, -1)
    for number, name in enumerate(dict.fromkeys(entry.attempt for entry in entries)):
        for entry in entries:
            if entry.attempt == name:
                at = _at(entry, per_epoch)
                last[at[at < steps]] = number
    return last


def _at(entry: RankLedger, per_epoch: int) -> "np.ndarray[Any, Any]":
    """The number of each record's step in the whole training."""
    records = entry.records
    at: np.ndarray[Any, Any] = records["epoch"].astype(np.int64) * per_epoch + records["step"]
    return at


def _gaps(last: "np.ndarray[Any, Any]", per_epoch: int) -> Iterable[str]:
    for step in np.flatnonzero(last < 0)[:5]:
        yield f"epoch {step // per_epoch + 1}, step {step % per_epoch + 1}: no rank recorded it"


def _rows(
    entries: Sequence[RankLedger],
    last: "np.ndarray[Any, Any]",
    trained: Totals,
    per_epoch: int,
) -> Iterable[str]:
    """Whether the rows of each epoch are all rows, each once."""
    steps = len(last)
    rows, marks = np.zeros(steps, np.int64), np.zeros(steps, np.uint64)
    ranks = np.zeros(steps, np.int64)
    worlds = np.zeros(steps, np.int64)
    for number, name in enumerate(dict.fromkeys(entry.attempt for entry in entries)):
        for entry in entries:
            if entry.attempt != name:
                continue
            at = _at(entry, per_epoch)
            counts = (at < steps) & (last[np.minimum(at, steps - 1)] == number)
            at, records = at[counts], entry.records[counts]
            rows[at] += records["rows"].astype(np.int64)
            marks[at] += records["mark"]
            ranks[at] += 1
            worlds[at] = entry.world
    for step in np.flatnonzero(ranks != worlds)[:5]:
        where = f"epoch {step // per_epoch + 1}, step {step % per_epoch + 1}"
        yield f"{where}: {ranks[step]} of {worlds[step]} ranks recorded it"
    for epoch in range(trained.epochs):
        part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        found = int(rows[part].sum())
        if found != trained.rows:
            yield f"epoch {epoch + 1}: {found:,} rows entered a batch, of {trained.rows:,}"
        elif int(marks[part].sum(dtype=np.uint64)) != trained.rows_mark:
            yield f"epoch {epoch + 1}: as many rows as there are, but some twice and some never"


def _attempt(name: str, entries: Sequence[RankLedger], kept: int) -> Attempt:
    done = [entry.records for entry in entries if len(entry.records)]
    if not done:
        return Attempt(name, entries[0].world, (0, 0), (0, 0), 0, kept)
    ends = [(r[["epoch", "step"]][0].tolist(), r[["epoch", "step"]][-1].tolist()) for r in done]
    first, last = min(e[0] for e in ends), max(e[1] for e in ends)
    return Attempt(
        name=name,
        world=entries[0].world,
        first=(first[0] + 1, first[1] + 1),
        last=(last[0] + 1, last[1] + 1),
        steps=max(len(records) for records in done),
        kept=kept,
    )
