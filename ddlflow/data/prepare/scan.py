"""The first pass: what the place of a row and the code of a value depend on.

Of each range the rows, of each task the rows of each class, the values of the categories and what
was dropped. It reads the label and the categories alone, where that is enough.
"""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.columns import Value, label_keys, missing_mask
from ddlflow.data.numbers import number_values
from ddlflow.data.offsets import Number, is_wide, looked_at, may_need, thinned
from ddlflow.data.prepare.row_filter import needs_features, rows_to_keep
from ddlflow.data.prepare.scan_task import (
    ByColumn,
    ScanResult,
    ScanTask,
    add_by_column,
    finished_result,
    save_result,
)
from ddlflow.data.prepare.small_ranges import read_in_turn
from ddlflow.data.prepare.vocabulary import ValueCounts, save_counts
from ddlflow.errors import DataError

MAX_CLASSES = 10_000


def scan_ranges(task: ScanTask) -> ScanResult:
    """Reads some ranges once and writes down what the plan needs.

    Raises:
        DataError: a damaged file, a value that does not fit, too many classes or categories.
    """
    finished = finished_result(task)
    if finished is not None:
        return finished
    counts = {column.name: ValueCounts(column) for column in task.category_columns}
    classes: Counter[Value] = Counter()
    train: Counter[Value | None] | None = None
    splits: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    columns: ByColumn = {}
    refused: ByColumn = {}
    extents: list[float] = []
    wide = _wide(task)
    points: dict[str, list[Number]] = {name: [] for name in wide}
    range_rows = [0] * len(task.ranges)
    for batch in read_in_turn(task.source, task.ranges, _columns(task, wide), range_rows):
        kept = rows_to_keep(batch, task.roles, task.spec, task.labels)
        dropped.update(kept.dropped)
        add_by_column(columns, kept.columns)
        add_by_column(refused, kept.refused)
        if kept.mask is not None:
            batch = batch.filter(pa.array(kept.mask))  # noqa: PLW2901 - what is left of it
        if task.labels == "regression":
            extents += _extent(task, batch)
        else:
            classes += _classes(task, batch)
        named = _named_train(task, batch)
        if named is not None:
            train = (train or Counter()) + named
        for name, count in counts.items():
            count.add(batch.column(name))
        for name in task.roles.categorical:
            missing[name] += int(np.count_nonzero(missing_mask(batch.column(name))))
        for name in wide:
            seen = number_values(looked_at(batch.column(name)), name)
            points[name] = thinned(points[name], seen)
        if task.roles.split is not None and not task.is_test:
            names = batch.column(task.roles.split).cast(pa.string())
            splits.update({str(name): count for name, count in _value_counts(names)})
    if counts:
        save_counts(
            task.counts, task.category_columns, (count.table() for count in counts.values())
        )
    result = ScanResult(
        range_rows=range_rows,
        kept=sum(range_rows) - dropped.total(),
        classes=classes,
        train=train,
        extent=(min(extents), max(extents)) if extents else None,
        splits=splits,
        missing=missing,
        points=points,
        dropped=dropped,
        columns=columns,
        refused=refused,
    )
    save_result(task, result)
    return result


def _wide(task: ScanTask) -> list[str]:
    """The columns that may need an offset: of a Parquet file its own statistics tell most apart."""
    if task.is_test:
        return []
    target = [task.roles.label] if task.labels == "regression" else []
    schema = task.source.schema
    wide = [name for name in [*task.roles.numeric, *target] if is_wide(schema[name])]
    known = _extremes(task, wide) if wide else {}
    return [name for name in wide if may_need(known.get(name), schema[name])]


def _extremes(task: ScanTask, columns: list[str]) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of columns, where the source states them of each range."""
    known = [task.source.extremes(part, columns) for part in task.ranges]
    return {
        name: (min(one[name][0] for one in known), max(one[name][1] for one in known))
        for name in columns
        if all(name in one for one in known)
    }


def _columns(task: ScanTask, wide: list[str]) -> list[str]:
    """The columns that this pass reads."""
    keys = task.roles.keys(is_test=task.is_test)
    roles = task.roles
    if needs_features(task.spec):
        return list(dict.fromkeys([*keys, *roles.numeric, *roles.tensor_names]))
    tensors = roles.tensor_names
    known = [task.source.without_nulls(part, tensors) for part in task.ranges if tensors]
    may_be_null = [name for name in tensors if not all(name in one for one in known)]
    return list(dict.fromkeys([*keys, *wide, *may_be_null]))


def _value_counts(values: pa.Array) -> list[tuple[Value, int]]:
    counts = pc.value_counts(values)
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    return list(pairs)


def _classes(task: ScanTask, batch: pa.RecordBatch) -> Counter[Value]:
    """The rows of each class of a piece. A float that is a whole number is that: 1.0 is class 1."""
    found = _value_counts(label_keys(batch.column(task.roles.label)))
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"Label {task.roles.label} has more than {MAX_CLASSES} classes. "
            "Correct data.label, or set train.objective to regression."
        )
    classes: Counter[Value] = Counter()
    for value, count in found:
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            classes[int(value)] += count
        elif value is not None and (not isinstance(value, float) or math.isfinite(value)):
            classes[value] += count
    return classes


def _named_train(task: ScanTask, batch: pa.RecordBatch) -> Counter[Value | None] | None:
    """The training rows of each class of a piece, where folds need them and a column names the
    splits: of seeded splits these are computed."""
    if task.cv is None or task.roles.split is None or task.is_test:
        return None
    names = batch.column(task.roles.split).cast(pa.string())
    train = batch.filter(pc.equal(names, "train"))
    if task.labels == "regression":
        return Counter({None: train.num_rows})
    return Counter(_classes(task, train))


def _extent(task: ScanTask, batch: pa.RecordBatch) -> list[float]:
    """The least and the largest label of a piece of a regression; nothing where there is none."""
    if task.labels != "regression":
        return []
    label = number_values(batch.column(task.roles.label), task.roles.label)
    finite = label[np.isfinite(label)]
    return [float(finite.min()), float(finite.max())] if finite.size else []
