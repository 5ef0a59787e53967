"""The first pass over some ranges of a source: what it is given, and what it finds."""

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from ddlflow.data.columns import Value
from ddlflow.data.offsets import Number
from ddlflow.data.prepare.vocabulary import CategoryColumn, category_columns
from ddlflow.data.roles import Labels, Roles
from ddlflow.data.sources.source import Range, Source
from ddlflow.spec.pipeline import Cv, Data
from ddlflow.store.store import Store
from ddlflow.store.stored import StoredFile

ByColumn = dict[str, dict[str, int]]  # reason -> column -> rows


WORK = "work"  # of a data set that is being made


@dataclass(frozen=True, slots=True)
class ScanTask:
    """The first pass over a range, or over several small ones in turn. It travels to a worker.

    Attributes:
        key: hash of all that the result depends on; a result with another key is stale.
        source: the source, with the files of these ranges alone.
        ranges: in row order; their indices count over all sources.
        number: the task's number over all sources.
        roles: what the columns are for.
        spec: the pipeline's data section.
        labels: how the label is read.
        is_test: the ranges are of ``test_source``.
        dataset: the place of the data set; what the passes leave for each other is in ``work``.
        cv: how the training rows are dealt to folds, if they are.
    """

    key: str
    source: Source
    ranges: tuple[Range, ...]
    number: int
    roles: Roles
    spec: Data
    labels: Labels
    is_test: bool
    dataset: Store
    cv: Cv | None = None

    @property
    def work(self) -> Store:
        """Where results lie."""
        return self.dataset.at(WORK)

    @property
    def result(self) -> StoredFile:
        return StoredFile(self.work, f"scan-{self.number:05d}.json")

    @property
    def counts(self) -> StoredFile:
        """How often each value of the categories is seen."""
        return StoredFile(self.work, f"counts-{self.number:05d}.arrow")

    @property
    def written(self) -> StoredFile:
        """The second pass's result."""
        return StoredFile(self.work, f"write-{self.number:05d}.json")

    @property
    def category_columns(self) -> tuple[CategoryColumn, ...]:
        """The categorical columns whose values are counted: those of ``test_source`` are not."""
        return () if self.is_test else category_columns(self.source.schema, self.roles.categorical)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What the first pass found in the rows of a task. Small, whatever the vocabularies.

    Attributes:
        range_rows: rows of each range, those left out too.
        kept: rows that are kept.
        classes: of the rows that are kept, by label; empty for a regression.
        train: as ``classes``, of the training rows, where folds need them and a column names the
            splits; of a regression under the key None.
        extent: the least and the largest label of a regression.
        splits: rows by what the split column says.
        missing: rows that are kept without a value, by categorical feature.
        points: values of the columns that may need an offset.
        dropped: rows left out, by reason.
        columns: rows that a column leaves out.
        refused: values that end the stage.
    """

    range_rows: list[int]
    kept: int
    classes: Counter[Value]
    train: Counter[Value | None] | None
    extent: tuple[float, float] | None
    splits: Counter[str]
    missing: Counter[str]
    points: dict[str, list[Number]]
    dropped: Counter[str]
    columns: ByColumn
    refused: ByColumn


def add_by_column(total: ByColumn, found: ByColumn) -> None:
    """Adds rows by reason and column, in place."""
    for reason, columns in found.items():
        into = total.setdefault(reason, {})
        for name, rows in columns.items():
            into[name] = into.get(name, 0) + rows


_COUNTED_BY_VALUE = ("classes", "train")  # whose keys JSON would turn into text


def save_result(task: ScanTask, result: ScanResult) -> None:
    """Keeps a result, so that a prepare that was stopped goes on from it."""
    value = {each.name: getattr(result, each.name) for each in fields(result)}
    for name in _COUNTED_BY_VALUE:
        value[name] = None if value[name] is None else list(value[name].items())
    task.result.save({"key": task.key, "result": value})


def finished_result(task: ScanTask) -> ScanResult | None:
    """What an earlier pass of the same task found, if all of it still stands."""
    found = task.result.load()
    counted = not task.category_columns or task.counts.exists()
    if not found or found["key"] != task.key or not counted:
        return None
    value: dict[str, Any] = found["result"]
    for name in _COUNTED_BY_VALUE:
        value[name] = None if value[name] is None else Counter(dict(value[name]))
    for name in ("splits", "missing", "dropped"):
        value[name] = Counter(value[name])
    value["extent"] = None if value["extent"] is None else tuple(value["extent"])
    return ScanResult(**value)
