"""The plan: from what the ranges hold to what each of them has to write."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ddlflow.data.columns import Category, Columns, Label, Value
from ddlflow.data.offsets import Number, offset_of
from ddlflow.data.prepare import split
from ddlflow.data.prepare.keep import REASONS, Lost, check_refused
from ddlflow.data.prepare.pieces import Quotas, RangeTask
from ddlflow.data.prepare.scan import MAX_CLASSES, ScanTask, category_kind, check_vocabulary
from ddlflow.data.sources.derive import needed
from ddlflow.data.sources.known import kept
from ddlflow.errors import DataError

Json = dict[str, Any]
Int64 = npt.NDArray[np.int64]


def points_of(scanned: list[Json]) -> dict[str, list[Number]]:
    """Values of the columns that may need an offset, over all ranges."""
    found: dict[str, list[Number]] = {}
    for result in scanned:
        for name, points in result["points"].items():
            found.setdefault(name, []).extend(points)
    return found


def learn(scans: list[ScanTask], scanned: list[Json]) -> tuple[Columns, Lost]:
    """What the first pass found: vocabularies, classes, offsets, and what is left out.

    Raises:
        DataError: refused values, no row, unknown splits, a label with one value alone, or
            classes that do not fit the objective.
    """
    refused: dict[str, Counter[str]] = {}
    named: dict[str, Counter[str]] = {}
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    missing: Counter[str] = Counter()
    counts: Counter[Value] = Counter()
    splits: Counter[str] = Counter()
    for result in scanned:
        dropped.update(result["dropped"])
        missing.update(result["missing"])
        splits.update(result["splits"])
        for counts_of, by_reason in ((refused, result["refused"]), (named, result["columns"])):
            for reason, found in by_reason.items():
                counts_of.setdefault(reason, Counter()).update(found)
        for piece in result["pieces"]:
            for value, count in piece["classes"]:
                counts[value] += count
    check_refused({reason: dict(found) for reason, found in refused.items()})
    rows = sum(piece["kept"] for result in scanned for piece in result["pieces"])
    if rows == 0:
        left = f" of {sum(dropped.values())} rows none is kept" if dropped.total() else " no row"
        raise DataError(
            f"The source holds{left}. Correct data.source, data.where, data.label_missing or "
            "data.missing."
        )
    task = scans[0]
    _check_target(scans, scanned)
    unknown = sorted(set(splits) - set(split.SPLITS))
    if unknown:
        raise DataError(
            f"Split column {task.roles.split} holds {', '.join(unknown[:5])}; "
            "allowed are train, validation and test."
        )
    offsets = {name: offset_of(points) for name, points in points_of(scanned).items()}
    offset = offsets.pop(task.roles.label, 0)
    label = Label(task.roles.label, task.labels, _classes(task, counts), offset)
    categories = tuple(_category(name, scans, scanned) for name in task.roles.categorical)
    derived, own = needed(task.roles.features, task.source.derived)
    schema = task.source.schema
    types = kept({name: schema[name] for name in [*task.roles.features, *own]})
    derive = {column.name: column.sql for column in derived}
    shifted = {name: offset for name, offset in offsets.items() if offset}
    columns = Columns(
        task.roles.numeric, categories, label, types, derive, shifted, task.roles.tensors
    )
    by_column = {reason: dict(found) for reason, found in named.items() if found}
    return columns, Lost(dict(dropped), by_column, dict(missing))


def _classes(task: ScanTask, counts: Counter[Value]) -> tuple[Value, ...]:
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


def _check_target(scans: list[ScanTask], scanned: list[Json]) -> None:
    """A regression's label has more than one value."""
    extents = [
        piece["extent"]
        for scan, result in zip(scans, scanned, strict=True)
        for piece in result["pieces"]
        if piece["extent"] and not scan.is_test
    ]
    low = min((extent[0] for extent in extents), default=0.0)
    high = max((extent[1] for extent in extents), default=1.0)
    if low == high:
        raise DataError(
            f"Label {scans[0].roles.label} is {low:g} in every row: there is nothing to learn. "
            "Correct data.label or data.source."
        )


def _category(name: str, scans: list[ScanTask], scanned: list[Json]) -> Category:
    """The vocabulary: values seen in ``rare_below`` rows or more, sorted."""
    task = scans[0]
    counts: Counter[Any] = Counter()
    for result in scanned:
        for value, count in zip(*result["categories"][name], strict=True):
            counts[value] += count
        check_vocabulary(name, len(counts))
    own = [result for scan, result in zip(scans, scanned, strict=True) if not scan.is_test]
    rows = sum(piece["kept"] for result in own for piece in result["pieces"])
    values = sorted(value for value, count in counts.items() if count >= task.spec.rare_below)
    known = sum(counts[value] for value in values)
    kind = category_kind(task.source.schema, name)
    return Category(
        name, "text" if kind == "text" else "integer", tuple(values), 1 - known / max(rows, 1)
    )


def range_tasks(
    scans: list[ScanTask], scanned: list[Json], columns: Columns
) -> tuple[list[RangeTask], Int64]:
    """The plan: what comes before each range, and how many rows of each class are held out.

    Returns:
        The ranges, and int64 [C] the training rows of each class (where folds need them).
    """
    spec = scans[0].spec
    index = {value: i for i, value in enumerate(columns.label.classes)}

    def rows_of(pieces: list[Json]) -> Int64:
        found = np.zeros(max(1, len(index)), dtype=np.int64)
        for piece in pieces:
            if not index:
                found[0] += piece["kept"]
            for value, count in piece["classes"]:
                found[index[value]] += count
        return found

    by_range = [rows_of(result["pieces"]) for result in scanned]
    named = [
        rows_of([piece["train"] for piece in result["pieces"] if "train" in piece])
        for result in scanned
    ]
    own = [rows for scan, rows in zip(scans, by_range, strict=True) if not scan.is_test]
    total, train = np.sum(own, axis=0), np.sum(named, axis=0)
    quotas = None
    if spec.split.column is None:
        shares = split.quotas(total.tolist(), spec.split.validation, spec.test_fraction)
        quotas = Quotas(total, *shares)
        train = total - quotas.validation - quotas.test
    tasks = []
    before, train_before, first_row = np.zeros_like(total), np.zeros_like(total), 0
    for scan, result, rows, train_rows in zip(scans, scanned, by_range, named, strict=True):
        tasks.append(RangeTask(scan, columns, first_row, before, train_before, quotas))
        before, train_before = before + rows, train_before + train_rows
        first_row += sum(piece["rows"] for piece in result["pieces"])
    return tasks, train
