"""What differs between recorded runs: settings, data, versions and results; and a plot."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.history.artifacts import recorded_dataset
from ddlflow.history.differences import of_datasets
from ddlflow.runs.finished import hashed
from ddlflow.runs.installed import PACKAGES
from ddlflow.spec.load import load_site
from ddlflow.store.site_storage import storage_of
from ddlflow.tracking.read import Reader, Recorded
from ddlflow.tracking.uris import compare_page

# A run's tags by what they say; the rest name it.
TAGS = {
    "settings": ("virtual_ranks", "threads", "device", "code_digest"),
    "data": ("data_digest",),
    "versions": ("version", "python", *PACKAGES, "machine", "gpus", "git_commit"),
    "results": ("model_digest", "world", "steps", "best_epoch"),
}
NAMED = 6  # runs whose ids fit into a plot's file name


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that differs.

    Attributes:
        group: settings, data, versions or results.
        name: of the setting, tag or metric.
        values: of each run, in the order given; None where a run has none.
    """

    group: str
    name: str
    values: list[str | float | None]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run's id at MLflow, its name and its status, as MLflow has them."""

    run_id: str
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: in the order given.
        rows: what differs.
        same: how many settings, tags and metrics are the same in all.
        plot: a picture of the metrics by epoch, or None where there are none.
        page: where MLflow compares them.
    """

    runs: list[ComparedRun]
    rows: list[Row]
    same: int
    plot: str | None
    page: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(run_ids: Sequence[str], *, on: str = "local") -> Comparison:
    """Compares two runs or more.

    Raises:
        SpecError: fewer than two, or one that is not recorded.
        TrackingError: the store does not answer.
    """
    run_ids = list(dict.fromkeys(run_ids))
    if len(run_ids) < 2:
        raise SpecError("compare takes two different runs or more: ddlflow compare RUN RUN")
    site = load_site(on)
    reader = Reader(site.tracking.uri)
    found = [reader.run(run_id) for run_id in run_ids]
    rows, same = differing(found)
    rows = _with_names(reader, found, rows)
    name = "-".join(run_id[:8] for run_id in run_ids[:NAMED])
    rest = f"-{hashed(run_ids)}" if len(run_ids) > NAMED else ""
    plot = _plot(reader, found, storage_of(site) / "compare" / f"{name}{rest}.png")
    return Comparison(
        runs=[ComparedRun(run.run_id, run.name, run.status) for run in found],
        rows=rows,
        same=same,
        plot=str(plot) if plot else None,
        page=compare_page(site.tracking.uri, [(r.experiment_id, r.run_id) for r in found]),
    )


def differing(runs: Sequence[Recorded]) -> tuple[list[Row], int]:
    """What differs between runs, and how much is the same."""
    rows, same = [], 0
    for group, tags in TAGS.items():
        columns: list[dict[str, str | float]] = [
            {name: run.tags[name] for name in tags if name in run.tags} for run in runs
        ]
        for column, run in zip(columns, runs, strict=True):
            if group == "settings":
                column.update(run.params)
            elif group == "results":
                metrics = run.metrics.items()
                column.update({k: v for k, v in metrics if not k.startswith("system/")})
        for name in dict.fromkeys(key for column in columns for key in column):
            values = [column.get(name) for column in columns]
            if all(_equal(value, values[0]) for value in values):
                same += 1
            else:
                rows.append(Row(group, name, values))
    return rows, same


def _with_names(reader: Reader, runs: Sequence[Recorded], rows: list[Row]) -> list[Row]:
    """The rows, and where the data differs also what is called otherwise in it."""
    at = next((k for k, row in enumerate(rows, 1) if row.name == "data_digest"), 0)
    held = [k for k, run in enumerate(runs) if reader.has(run.run_id, "data")]
    if not at or len(held) < 2:
        return rows
    with tempfile.TemporaryDirectory(prefix="ddlflow-compare-") as folder:
        datasets = [recorded_dataset(reader, runs[k].run_id, Path(folder)) for k in held]
    named = []
    for name, values in of_datasets(datasets).items():
        known = dict(zip(held, values, strict=True))
        named.append(Row("data", name, [known.get(k) for k in range(len(runs))]))
    return rows[:at] + named + rows[at:]


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 - two NaNs


def _plot(reader: Reader, runs: Sequence[Recorded], path: Path) -> Path | None:
    """Draws each metric by epoch, a line a run; the losses first."""
    names = sorted(
        {name for run in runs for name in run.metrics if name == "loss" or name.startswith("val_")},
        key=lambda name: (name != "loss", name != "val_loss", name),
    )
    if not names:
        return None
    from ddlflow.report.curves import write_lines

    histories = {
        name: [
            (f"{run.name} ({run.run_id[:8]})", reader.history(run.run_id, name))
            for run in runs
            if name in run.metrics
        ]
        for name in names
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_lines(path, histories)
    except OSError as error:
        raise SpecError(
            f"storage {path.parents[1]}: the plot {path} cannot be written: {error.strerror}. Free "
            "space or permissions there, or set storage in the site file."
        ) from error
