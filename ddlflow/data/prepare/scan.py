"""The first pass: what the place of a row and the code of a value depend on.

Per piece the rows of each class, per range the vocabularies and what was dropped. Parquet and
Arrow are read for the label and the categories alone. Text is parsed once: the pass also spools
the parsed columns, and the second pass reads the spool.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.columns import Value, category_values, label_keys, missing_mask
from ddlflow.data.numbers import number_values
from ddlflow.data.offsets import Number, is_wide, looked_at, may_need, thinned
from ddlflow.data.prepare.keep import keep, needs_features
from ddlflow.data.roles import Labels, Roles
from ddlflow.data.sources.schema import kind_of
from ddlflow.data.sources.source import Range, Source, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Cv, Data
from ddlflow.store.files import load_json, replacing, save_json, writing

MAX_CLASSES = 10_000
MAX_CATEGORIES = 1_000_000


@dataclass(frozen=True, slots=True)
class ScanTask:
    """One range's first pass. Small: it travels to a worker.

    Attributes:
        key: hash of all that the result depends on; a result with another key is stale.
        source: the source, with this range's file alone.
        part: the range; its index counts over all sources.
        number: the range's number over all sources.
        roles: what the columns are for.
        spec: the pipeline's data section.
        labels: how the label is read.
        is_test: the range is of ``test_source``.
        work: folder of results and spools.
        cv: how the training rows are dealt to folds, if they are.
    """

    key: str
    source: Source
    part: Range
    number: int
    roles: Roles
    spec: Data
    labels: Labels
    is_test: bool
    work: Path
    cv: Cv | None = None

    @property
    def result(self) -> Path:
        return self.work / f"scan-{self.number:05d}.json"

    @property
    def written(self) -> Path:
        """The second pass's result: where it stands the spool is gone."""
        return self.work / f"write-{self.number:05d}.json"

    @property
    def spool(self) -> Path | None:
        if not self.source.is_parsed:
            return None
        return self.work / f"spool-{self.number:05d}.arrow"


def scan_range(task: ScanTask) -> dict[str, Any]:
    """Reads a range once and writes down what the plan needs.

    Returns:
        JSON: pieces (rows, kept, classes as [value, count], extent of a regression's label),
        categories, missing (rows without a category, by feature), splits, points (values of the
        columns that may need an offset), dropped, columns (that rows were dropped for), refused.

    Raises:
        DataError: a damaged file, a value that does not fit, too many classes or categories.
    """
    finished = load_json(task.result)
    spooled = task.spool is None or task.spool.exists() or task.written.exists()
    if finished and finished["key"] == task.key and spooled:
        return dict(finished)
    pieces: list[dict[str, Any]] = []
    vocabularies: dict[str, Counter[Value]] = {name: Counter() for name in task.roles.categorical}
    splits: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    columns: dict[str, Counter[str]] = {}
    refused: dict[str, Counter[str]] = {}
    wide = _wide(task)
    points: dict[str, list[Number]] = {name: [] for name in wide}
    for batch in _spooling(task, wide):
        kept = keep(batch, task.roles, task.spec, task.labels)
        dropped.update(kept.dropped)
        for counts_of, found in ((columns, kept.columns), (refused, kept.refused)):
            for reason, named in found.items():
                counts_of.setdefault(reason, Counter()).update(named)
        if kept.mask is not None:
            batch = batch.filter(pa.array(kept.mask))  # noqa: PLW2901 - what is left of it
        classes = [] if task.labels == "regression" else _classes(task, batch)
        pieces.append(
            {"rows": batch.num_rows + sum(kept.dropped.values()), "kept": batch.num_rows}
            | {"classes": classes, "extent": _extent(task, batch)}
            | _named_train(task, batch)
        )
        for name, counts in vocabularies.items():
            _count(task, batch, name, counts)
            missing[name] += int(np.count_nonzero(missing_mask(batch.column(name))))
        for name in wide:
            seen = number_values(looked_at(batch.column(name)), name)
            points[name] = thinned(points[name], seen)
        if task.roles.split is not None and not task.is_test:
            names = batch.column(task.roles.split).cast(pa.string())
            splits.update({str(name): count for name, count in _value_counts(names)})
    result = {
        "key": task.key,
        "pieces": pieces,
        "categories": {n: [list(c), list(c.values())] for n, c in vocabularies.items()},
        "missing": dict(missing),
        "splits": dict(splits),
        "points": points,
        "dropped": dict(dropped),
        "columns": {reason: dict(found) for reason, found in columns.items()},
        "refused": {reason: dict(found) for reason, found in refused.items()},
    }
    save_json(task.result, result)
    return result


def category_kind(schema: dict[str, pa.DataType], name: str) -> str:
    """Whether a category's values are text or whole numbers."""
    return "text" if kind_of(schema[name]) == "text" else "integer"


def _wide(task: ScanTask) -> list[str]:
    """The columns that may need an offset: of a Parquet file its own statistics tell most apart."""
    if task.is_test:
        return []
    target = [task.roles.label] if task.labels == "regression" else []
    schema = task.source.schema
    wide = [name for name in [*task.roles.numeric, *target] if is_wide(schema[name])]
    known = task.source.extremes(task.part, wide) if wide else {}
    return [name for name in wide if may_need(known.get(name), schema[name])]


def _columns(task: ScanTask, wide: list[str]) -> list[str]:
    """The columns that this pass reads."""
    keys = task.roles.keys(is_test=task.is_test)
    roles = task.roles
    if task.spool is not None or needs_features(task.spec):
        return list(dict.fromkeys([*keys, *roles.numeric, *roles.tensor_names]))
    tensors = roles.tensor_names
    known = task.source.without_nulls(task.part, tensors) if tensors else ()
    may_be_null = [name for name in tensors if name not in known]
    return list(dict.fromkeys([*keys, *wide, *may_be_null]))


def _spooling(task: ScanTask, wide: list[str]) -> Iterator[pa.RecordBatch]:
    """The range's pieces; those of a text format are also written to the spool, as parsed."""
    batches = read(task.source, task.part, _columns(task, wide))
    if task.spool is None:
        yield from batches
        return
    with replacing(task.spool) as temporary, ExitStack() as stack:
        writer = None
        for batch in batches:
            if writer is None:
                sink = stack.enter_context(pa.OSFile(str(temporary), "wb"))
                writer = stack.enter_context(pa.ipc.new_file(sink, batch.schema))
            with writing(task.spool):
                writer.write_batch(batch)
            yield batch
        if writer is None:
            temporary.touch()


def _value_counts(values: pa.Array) -> list[tuple[Value, int]]:
    counts = pc.value_counts(values)
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    return list(pairs)


def _classes(task: ScanTask, batch: pa.RecordBatch) -> list[list[Value]]:
    """[class, rows] of a piece. A float that is a whole number is that number: 1.0 is class 1."""
    found = _value_counts(label_keys(batch.column(task.roles.label)))
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"Label {task.roles.label} has more than {MAX_CLASSES} classes. "
            "Correct data.label, or set train.objective to regression."
        )
    return [
        [int(v) if isinstance(v, float) and v.is_integer() else v, count]
        for v, count in found
        if v is not None and (not isinstance(v, float) or math.isfinite(v))
    ]


def _named_train(task: ScanTask, batch: pa.RecordBatch) -> dict[str, Any]:
    """The training rows of a piece and their classes, where folds need them and a column names
    the splits: of seeded splits these are computed."""
    if task.cv is None or task.roles.split is None or task.is_test:
        return {}
    names = batch.column(task.roles.split).cast(pa.string())
    train = batch.filter(pc.equal(names, "train"))
    classes = [] if task.labels == "regression" else _classes(task, train)
    return {"train": {"kept": train.num_rows, "classes": classes}}


def _extent(task: ScanTask, batch: pa.RecordBatch) -> list[float]:
    """The least and the largest label of a piece of a regression; nothing where there is none."""
    if task.labels != "regression":
        return []
    label = number_values(batch.column(task.roles.label), task.roles.label)
    finite = label[np.isfinite(label)]
    return [float(finite.min()), float(finite.max())] if finite.size else []


def _count(task: ScanTask, batch: pa.RecordBatch, name: str, counts: Counter[Value]) -> None:
    """Adds a piece's categories; those of ``test_source`` stay unseen."""
    if task.is_test:
        return
    kind = category_kind(task.source.schema, name)
    values = category_values(batch.column(name), name, kind)
    for value, count in _value_counts(values):
        if value is not None:
            counts[value] += count
    check_vocabulary(name, len(counts))


def check_vocabulary(name: str, size: int) -> None:
    """Refuses a column of keys.

    Raises:
        DataError: more than ``MAX_CATEGORIES`` different values.
    """
    if size > MAX_CATEGORIES:
        raise DataError(
            f"Category {name} has more than {MAX_CATEGORIES} different values: it looks like a "
            "key. List it in data.exclude."
        )
