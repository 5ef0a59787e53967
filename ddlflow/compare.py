"""What differs between recorded runs: settings, data, versions and results; and a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.session import storage_of
from ddlflow.spec.load import load_site
from ddlflow.tracking.read import Reader, Recorded
from ddlflow.tracking.store import compare_page

# Of a run's tags, those that say what it was made of; the rest name it.
VERSION_TAGS = (
    "version",
    "python",
    "torch",
    "numpy",
    "pyarrow",
    "dask",
    "distributed",
    "prefect",
    "mlflow",
    "torchmetrics",
    "machine",
    "git_commit",
)
DATA_TAGS = ("data_digest",)
RESULT_TAGS = ("model_digest", "virtual_ranks", "threads", "world", "device", "best_epoch")


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
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: their ids and names.
        rows: what differs.
        same: how many settings, tags and metrics are the same in all.
        plot: a picture of the metrics by epoch, or None where there are none.
        page: where MLflow compares them.
    """

    runs: list[dict[str, str]]
    rows: list[Row]
    same: int
    plot: str | None
    page: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(run_ids: Sequence[str], *, on: str = "local") -> Comparison:
    """Compares two runs or more.

    Raises:
        SpecError: fewer than two.
        TrackingError: one that is not recorded.
    """
    if len(set(run_ids)) < 2:
        raise SpecError("compare takes two different runs or more: ddlflow compare RUN RUN")
    site = load_site(on)
    reader = Reader(site.tracking.uri)
    found = [reader.run(run_id) for run_id in run_ids]
    rows, same = differing(found)
    folder = storage_of(site) / "compare"
    plot = _plot(reader, found, folder / ("-".join(run_id[:8] for run_id in run_ids) + ".png"))
    return Comparison(
        runs=[{"run_id": run.run_id, "name": run.name, "status": run.status} for run in found],
        rows=rows,
        same=same,
        plot=str(plot) if plot else None,
        page=compare_page(site.tracking.uri, [(r.experiment_id, r.run_id) for r in found]),
    )


def differing(runs: Sequence[Recorded]) -> tuple[list[Row], int]:
    """What differs between runs, and how much is the same."""
    sources: list[tuple[str, list[dict[str, Any]]]] = [
        ("settings", [dict(run.params) for run in runs]),
        ("data", [{k: run.tags[k] for k in DATA_TAGS if k in run.tags} for run in runs]),
        ("versions", [{k: run.tags[k] for k in VERSION_TAGS if k in run.tags} for run in runs]),
        ("results", [{k: run.tags[k] for k in RESULT_TAGS if k in run.tags} for run in runs]),
        ("results", [_results(run) for run in runs]),
    ]
    rows, same = [], 0
    for group, columns in sources:
        for name in dict.fromkeys(key for column in columns for key in column):
            values = [column.get(name) for column in columns]
            if all(value == values[0] for value in values):
                same += 1
            else:
                rows.append(Row(group, name, values))
    return rows, same


def _results(run: Recorded) -> dict[str, float]:
    return {k: v for k, v in run.metrics.items() if not k.startswith("system/")}


def _plot(reader: Reader, runs: Sequence[Recorded], path: Path) -> Path | None:
    """Draws each metric by epoch, a line a run; the losses first."""
    histories: dict[str, list[tuple[str, list[tuple[int, float]]]]] = {}
    for run in runs:
        for name in run.metrics:
            if name == "loss" or name.startswith("val_"):
                entry = (f"{run.name} ({run.run_id[:8]})", reader.history(run.run_id, name))
                histories.setdefault(name, []).append(entry)
    if not histories:
        return None
    from ddlflow.report.lines import write_lines

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_lines(path, histories)
