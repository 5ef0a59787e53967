"""A range's pieces as every pass after the first sees them: rows kept, classes and splits known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.columns import Columns, label_values
from ddlflow.data.prepare import split
from ddlflow.data.prepare.fold_assignment import FoldAssignment
from ddlflow.data.prepare.row_filter import rows_to_keep
from ddlflow.data.prepare.scan_task import ScanTask
from ddlflow.data.prepare.small_ranges import read_in_turn

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many rows of each of C classes there are, and how many of them are held out.

    Attributes:
        counts: int64 [C] rows in all.
        validation: int64 [C].
        test: int64 [C].
    """

    counts: Int64
    validation: Int64
    test: Int64


@dataclass(frozen=True, slots=True)
class RangeTask:
    """The ranges of a scan in a pass after it.

    Attributes:
        scan: their first pass.
        columns: how values become numbers.
        first_row: the number of their first row in the source.
        before: int64 [C] rows of each class before them.
        train_before: int64 [C] training rows of each class before them; counted where folds need
            them and a column names the splits, else 0.
        quotas: None where the split comes from a column or the ranges are of ``test_source``.
        assignment: how the training rows become parts; None: they are one, or it is not known yet.
    """

    scan: ScanTask
    columns: Columns
    first_row: int
    before: Int64
    train_before: Int64
    quotas: Quotas | None
    assignment: FoldAssignment | None = None


@dataclass(frozen=True, slots=True)
class PieceRows:
    """The n rows of a piece that are kept, in the source's order.

    Attributes:
        number: the piece's, in its task.
        first_row: the number of the piece's first row in the source, kept or not.
        batch: the columns that were asked for.
        source_rows: int64 [n] their numbers in the source.
        label: [n] as ``label_values`` has it.
        classes: int64 [n]; all 0 for a regression.
        splits: uint8 [n] TRAIN, VALIDATION or TEST.
        numbers: int64 [n] of a training row, its number among those of its class; None without
            folds.
    """

    number: int
    first_row: int
    batch: pa.RecordBatch
    source_rows: Int64
    label: npt.NDArray[Any]
    classes: Int64
    splits: npt.NDArray[np.uint8]
    numbers: Int64 | None


def piece_rows(task: RangeTask, features: Sequence[str]) -> Iterator[PieceRows]:
    """The pieces of a task that have rows, in order.

    Args:
        task: the ranges.
        features: numeric columns and tensors that are wanted beside the key columns.

    Raises:
        DataError: a value that does not fit.
    """
    scan, columns = task.scan, task.columns
    first_row, before, train_before = task.first_row, task.before.copy(), task.train_before.copy()
    for number, batch in enumerate(_batches(scan, features)):
        rows = batch.num_rows
        begin, first_row = first_row, first_row + rows
        source_rows = np.arange(begin, first_row)
        mask = rows_to_keep(batch, scan.roles, scan.spec, scan.labels).mask
        if mask is not None:
            batch = batch.filter(pa.array(mask))  # noqa: PLW2901 - what is left of it
            source_rows = source_rows[mask]
        if not batch.num_rows:
            continue
        label = label_values(batch.column(columns.label.name), columns.label)
        is_class = columns.label.kind != "regression"
        classes = label.astype(np.int64) if is_class else np.zeros(len(label), dtype=np.int64)
        numbers = np.full(len(label), -1, dtype=np.int64) if scan.cv is not None else None
        splits = _splits(task, batch, classes, before, numbers)
        if numbers is not None and not scan.is_test and task.quotas is None:
            _number(classes, splits == split.TRAIN, train_before, numbers)
        before += np.bincount(classes, minlength=len(before))
        yield PieceRows(number, begin, batch, source_rows, label, classes, splits, numbers)


def _batches(scan: ScanTask, features: Sequence[str]) -> Iterator[pa.RecordBatch]:
    wanted = dict.fromkeys([*scan.roles.keys(is_test=scan.is_test), *features])
    rows = [0] * len(scan.ranges)  # which the first pass has counted
    return read_in_turn(scan.source, scan.ranges, list(wanted), rows)


def _splits(
    task: RangeTask,
    batch: pa.RecordBatch,
    classes: Int64,
    before: Int64,
    numbers: Int64 | None,
) -> npt.NDArray[np.uint8]:
    """The split of each row; fills ``numbers`` where splits are seeded."""
    if task.scan.is_test:
        return np.full(len(classes), split.TEST, dtype=np.uint8)
    if task.scan.roles.split is not None:
        names = batch.column(task.scan.roles.split).cast(pa.string())
        codes = pc.index_in(names, value_set=pa.array(split.SPLITS))
        return np.asarray(codes).astype(np.uint8)
    quotas = task.quotas
    assert quotas is not None
    keys = split.class_keys(task.scan.spec.seed, len(quotas.counts))
    return split.assign(
        classes,
        before=before,
        counts=quotas.counts,
        validation=quotas.validation,
        test=quotas.test,
        keys=keys,
        numbers=numbers,
    )


def _number(classes: Int64, is_train: npt.NDArray[np.bool_], before: Int64, numbers: Int64) -> None:
    """Counts the training rows of each class on, in the source's order."""
    train = np.flatnonzero(is_train)
    of_train = classes[train]
    rows, bounds = split.by_class(of_train, len(before))
    for of, start, stop in split.runs(of_train, rows, bounds):
        numbers[train[rows[start:stop]]] = np.arange(start, stop) + (before[of] - bounds[of])
    before += np.bincount(of_train, minlength=len(before))
