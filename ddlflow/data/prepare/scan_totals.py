"""What all scans found together, added up as they come: small, however many there are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ddlflow.data.offsets import Number
from ddlflow.data.prepare.row_filter import REASONS
from ddlflow.data.prepare.scan_task import ByColumn, ScanResult, ScanTask, add_by_column

Int64 = npt.NDArray[np.int64]


class ClassRows:
    """The rows of each class, task by task: 12 bytes for each class that a task has."""

    def __init__(self) -> None:
        self._number: dict[Any, int] = {}
        self._tasks: list[tuple[npt.NDArray[np.int32], Int64]] = []

    def add(self, counts: Mapping[Any, int]) -> None:
        """The counts of the next task."""
        numbers = [self._number.setdefault(value, len(self._number)) for value in counts]
        self._tasks.append(
            (np.array(numbers, dtype=np.int32), np.array([*counts.values()], dtype=np.int64))
        )

    def of_task(self, task: int, index: Mapping[Any, int]) -> Int64:
        """int64 [index] the rows of each class of a task, by the class's place in ``index``."""
        found = np.zeros(len(index), dtype=np.int64)
        numbers, counts = self._tasks[task]
        places = np.array([index[value] for value in self._number], dtype=np.int64)
        found[places[numbers]] = counts
        return found

    def total(self) -> dict[Any, int]:
        """The rows of each class over all tasks."""
        sums = np.zeros(len(self._number), dtype=np.int64)
        for numbers, counts in self._tasks:
            sums[numbers] += counts
        return dict(zip(self._number, sums.tolist(), strict=True))


@dataclass(slots=True)
class ScanTotals:
    """What the scans found, in their order.

    Attributes:
        range_rows: of each task, the rows of its ranges.
        kept: of each task, its rows that are kept.
        classes: the rows of each class that are kept.
        train: as ``classes``, of the training rows where a column names the splits and folds need
            them.
        low: the least label of a regression, without the test source.
        high: the largest one.
        splits: rows by what the split column says.
        missing: rows without a value, by categorical feature.
        points: values of the columns that may need an offset.
        dropped: rows left out, by reason.
        columns: rows that a column leaves out.
        refused: values that end the stage.
    """

    range_rows: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    classes: ClassRows = field(default_factory=ClassRows)
    train: ClassRows = field(default_factory=ClassRows)
    low: float = float("inf")
    high: float = float("-inf")
    splits: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    points: dict[str, list[Number]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    columns: ByColumn = field(default_factory=dict)
    refused: ByColumn = field(default_factory=dict)

    def add(self, scan: ScanTask, result: ScanResult) -> None:
        """Adds the result of the next task."""
        self.range_rows.append(result.range_rows)
        self.kept.append(result.kept)
        self.classes.add(result.classes)
        self.train.add(result.train or {})
        if result.extent is not None and not scan.is_test:
            self.low, self.high = min(self.low, result.extent[0]), max(self.high, result.extent[1])
        self.splits.update(result.splits)
        self.missing.update(result.missing)
        for name, points in result.points.items():
            self.points.setdefault(name, []).extend(points)
        self.dropped.update(result.dropped)
        add_by_column(self.columns, result.columns)
        add_by_column(self.refused, result.refused)


def totals_of(scans: Iterable[ScanTask], results: Iterable[ScanResult]) -> ScanTotals:
    """Adds up results as they come, in the scans' order."""
    found = ScanTotals()
    for scan, result in zip(scans, results, strict=True):
        found.add(scan, result)
    return found
