"""The plan: from what the ranges hold to what each of them has to write."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ddlflow.data.columns import Columns, Label, Value
from ddlflow.data.offsets import offset_of
from ddlflow.data.prepare import split
from ddlflow.data.prepare.piece_rows import Quotas, RangeTask
from ddlflow.data.prepare.row_filter import LeftOut, check_refused
from ddlflow.data.prepare.scan import MAX_CLASSES
from ddlflow.data.prepare.scan_task import ScanTask
from ddlflow.data.prepare.scan_totals import ScanTotals
from ddlflow.data.prepare.vocabulary import Map, vocabulary
from ddlflow.data.sources.derive import needed
from ddlflow.data.sources.trained_types import type_names
from ddlflow.errors import DataError

Int64 = npt.NDArray[np.int64]


def learn(scans: Sequence[ScanTask], found: ScanTotals, map_over: Map) -> tuple[Columns, LeftOut]:
    """What the first pass found: vocabularies, classes, offsets, and what is left out.

    Args:
        scans: all of them; ``map_over`` merges what they counted of the categories.
        found: what they found.

    Raises:
        DataError: refused values, no row, unknown splits, a label with one value alone,
            classes that do not fit the objective, or a category of too many values.
    """
    check_refused(found.refused)
    dropped = found.dropped
    if sum(found.kept) == 0:
        left = f" of {dropped.total()} rows none is kept" if dropped.total() else " no row"
        raise DataError(
            f"The source holds{left}. Correct data.source, data.where, data.label_missing or "
            "data.missing."
        )
    task = scans[0]
    _check_target(task, found)
    unknown = sorted({*found.splits} - {*split.SPLITS})
    if unknown:
        raise DataError(
            f"Split column {task.roles.split} holds {', '.join(unknown[:5])}; "
            "allowed are train, validation and test."
        )
    offsets = {name: offset_of(points) for name, points in found.points.items()}
    offset = offsets.pop(task.roles.label, 0)
    label = Label(task.roles.label, task.labels, _classes(task, found.classes.total()), offset)
    own = [scan for scan in scans if not scan.is_test]
    categories = vocabulary(
        [scan.counts for scan in own],
        task.category_columns,
        key=task.key,
        rows=sum(rows for scan, rows in zip(scans, found.kept, strict=True) if not scan.is_test),
        rare_below=task.spec.rare_below,
        map_over=map_over,
    )
    derived, own_names = needed(task.roles.features, task.source.derived)
    schema = task.source.schema
    types = type_names({name: schema[name] for name in [*task.roles.features, *own_names]})
    derive = {column.name: column.sql for column in derived}
    shifted = {name: offset for name, offset in offsets.items() if offset}
    columns = Columns(
        task.roles.numeric, categories, label, types, derive, shifted, task.roles.tensors
    )
    by_column = {reason: rows for reason, rows in found.columns.items() if rows}
    return columns, LeftOut(dict(dropped), by_column, dict(found.missing))


def _classes(task: ScanTask, counts: Mapping[Value, int]) -> tuple[Value, ...]:
    """The classes in order: numbers by value, text by code point."""
    if task.labels == "regression":
        return ()
    is_text = {isinstance(value, str) for value in counts}
    if len(is_text) > 1:
        raise DataError(f"Label {task.roles.label} is a text in some files and a number in others.")
    classes = tuple(sorted(counts))
    shown = ", ".join(f"{value}: {counts[value]}" for value in classes[:5])
    shown += ", ..." if len(classes) > 5 else ""
    if len(classes) < 2:
        raise DataError(
            f"Label {task.roles.label} has one class alone ({shown} rows): there is nothing to "
            "learn. Correct data.label or data.source."
        )
    if task.labels == "binary" and len(classes) > 2:
        raise DataError(
            f"Label {task.roles.label} has {len(classes)} classes ({shown} rows); objective binary "
            "needs two. Set train.objective to multiclass or regression."
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"Label {task.roles.label} has {len(classes)} classes, more than {MAX_CLASSES}. "
            "Correct data.label, or set train.objective to regression."
        )
    return classes


def _check_target(task: ScanTask, found: ScanTotals) -> None:
    """A regression's label has more than one value."""
    if found.low == found.high:
        raise DataError(
            f"Label {task.roles.label} is {found.low:g} in every row: there is nothing to learn. "
            "Correct data.label or data.source."
        )


def range_tasks(
    scans: Sequence[ScanTask], found: ScanTotals, columns: Columns
) -> tuple[list[RangeTask], Int64]:
    """The plan: what comes before the ranges of each scan, and how many rows are held out.

    Returns:
        The tasks, and int64 [C] the training rows of each class (where folds need them).
    """
    spec, tasks = scans[0].spec, range(len(scans))
    index: dict[Value | None, int] = {value: i for i, value in enumerate(columns.label.classes)}
    if index:
        by_scan = [found.classes.of_task(k, index) for k in tasks]
    else:
        index = {None: 0}
        by_scan = [np.array([kept]) for kept in found.kept]
    named = [found.train.of_task(k, index) for k in tasks]
    own = [rows for scan, rows in zip(scans, by_scan, strict=True) if not scan.is_test]
    total, train = np.sum(own, axis=0), np.sum(named, axis=0)
    quotas = None
    if spec.split.column is None:
        shares = split.quotas(total.tolist(), spec.split.validation, spec.test_fraction)
        quotas = Quotas(total, *shares)
        train = total - quotas.validation - quotas.test
    planned = []
    before, train_before, first_row = np.zeros_like(total), np.zeros_like(total), 0
    for k, scan in enumerate(scans):
        planned.append(RangeTask(scan, columns, first_row, before, train_before, quotas))
        before, train_before = before + by_scan[k], train_before + named[k]
        first_row += sum(found.range_rows[k])
    return planned, train
