"""What the folds are: decided before a shard is written, judged when all are."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.prepare import times
from ddlflow.data.prepare.fold_assignment import FoldAssignment, balanced
from ddlflow.data.prepare.fold_keys import FoldKeys, groups_of, note_groups, times_of
from ddlflow.data.prepare.piece_rows import RangeTask
from ddlflow.data.shards.manifest import Fold, Manifest
from ddlflow.errors import DataError
from ddlflow.spec.cv import MAX_FOLDS
from ddlflow.spec.pipeline import Cv
from ddlflow.store.stored import StoredFile

Int64 = npt.NDArray[np.int64]
Decided = tuple[FoldAssignment, tuple[Fold, ...]]


def decide_folds(tasks: list[RangeTask], fold_keys: list[FoldKeys], train: Int64) -> Decided:
    """How the training rows are dealt, and what each fold trains on.

    Args:
        tasks: the ranges of the source, without those of a test source.
        fold_keys: of ``read_fold_keys``, as tasks; none where the kind needs no column.
        train: int64 [C] training rows of each class.

    Raises:
        DataError: more folds than rows, classes or groups allow, or a column that cannot be used.
    """
    scan = tasks[0].scan
    cv = scan.cv
    assert cv is not None
    kind, rows = cv.kind_for(scan.labels), int(train.sum())
    least = cv.folds or 2
    if rows < least:
        raise DataError(
            f"cv.folds is {least}, and there are {rows} rows to train on. Set cv.folds to at most "
            f"{max(2, rows)}, or give more rows."
        )
    missing = sum(keys.missing for keys in fold_keys)
    if missing:
        of_what = "time" if kind == "time" else "group" if kind == "group" else "fold"
        raise DataError(
            f"cv.by names column {cv.by}, which is missing in {missing} training rows: their "
            f"{of_what} is not known. Fill it in the source, or leave these rows out there."
        )
    if kind == "time":
        return _in_time(cv, tasks, fold_keys, rows)
    if kind in ("group", "predefined"):
        return _named(cv, tasks, fold_keys)
    assert cv.folds is not None
    if kind == "stratified":
        _check_classes(cv.folds, tasks[0], train)
    assignment = FoldAssignment(
        "plain" if kind == "plain" else "stratified", cv.folds, seed=cv.seed, counts=train
    )
    return assignment, _apart([str(fold) for fold in range(cv.folds)])


def _apart(names: list[str]) -> tuple[Fold, ...]:
    """Folds that are each validated on one part and trained on all others."""
    every = range(len(names))
    return tuple(
        Fold(name, tuple(p for p in every if p != fold), (fold,)) for fold, name in enumerate(names)
    )


def _check_classes(folds: int, task: RangeTask, train: Int64) -> None:
    largest = int(train.argmax())
    if train[largest] < folds:
        raise DataError(
            f"cv.folds is {folds}, and no class has so many training rows: the largest, "
            f"{task.columns.label.classes[largest]}, has {train[largest]}. Set cv.folds to at most "
            f"{max(2, train[largest])}, or cv.kind to plain."
        )


def _named(cv: Cv, tasks: list[RangeTask], fold_keys: list[FoldKeys]) -> Decided:
    """Folds whose rows are told by a value in each row."""
    scan, by = tasks[0].scan, cv.by
    assert by is not None
    values, sizes = groups_of(tasks, by)
    if cv.kind == "group":
        assert cv.folds is not None
        if len(values) < cv.folds:
            lower = f"Set cv.folds to at most {len(values)}, or name" if len(values) > 1 else "Name"
            raise DataError(
                f"cv.folds is {cv.folds}, and column {by} has {len(values)} different values in "
                f"the training rows. {lower} a column of more groups."
            )
        parts, names = balanced(sizes, cv.folds), [str(fold) for fold in range(cv.folds)]
    else:
        parts, names = list(range(len(values))), [str(value) for value in values]
        _check_names(cv, by, names)
    _check_spread(tasks[0], fold_keys, by)
    table = StoredFile(scan.work, "folds.arrow")
    batch = pa.record_batch({"value": pa.array(values), "part": pa.array(parts, pa.int32())})
    with (
        table.made() as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)
    type_ = scan.source.schema[by]
    return FoldAssignment("named", len(names), type=type_, table=table), _apart(names)


def _check_names(cv: Cv, by: str, names: list[str]) -> None:
    """A column of predefined folds names a number of folds that is wanted."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if len(names) < 2:
        raise DataError(
            f"cv.by names column {by}, which holds {shown} in every training row; predefined folds "
            "need two values or more. Name another column."
        )
    if len(names) > MAX_FOLDS:
        raise DataError(
            f"cv.by names column {by}, which has {len(names)} different values ({shown}); "
            f"predefined folds are {MAX_FOLDS} at most. Set cv.kind: group and cv.folds, or name "
            "another column."
        )
    if cv.folds not in (None, len(names)):
        raise DataError(
            f"cv.folds is {cv.folds}, and column {by} names {len(names)} folds ({shown}). "
            "Remove cv.folds, or name another column."
        )


def _check_spread(task: RangeTask, fold_keys: list[FoldKeys], by: str) -> None:
    """No class lies in one group alone: the fold that holds it back could not learn it."""
    classes = task.columns.label.classes
    only: dict[int, str | int] = {}
    spread = {class_ for keys in fold_keys for class_ in keys.spread}
    for keys in fold_keys:
        for class_, group in keys.only.items():
            note_groups(class_, {group}, only, spread)
    for class_, group in sorted(only.items()):
        if classes:
            raise DataError(
                f"Every training row of class {classes[class_]} has {group} in column {by}, so the "
                "fold that is validated on them could not learn that class. Name another column "
                "in cv.by, or leave cv.kind out for stratified folds."
            )


def _in_time(cv: Cv, tasks: list[RangeTask], fold_keys: list[FoldKeys], rows: int) -> Decided:
    """Fold k is validated on block k + 1 and trained on blocks before it."""
    by, folds = cv.by, cv.folds
    assert by is not None
    assert folds is not None
    type_ = tasks[0].scan.source.schema[by]
    files = times_of(tasks, fold_keys)
    low = min(keys.low for keys in fold_keys if keys.low is not None)
    high = max(keys.high for keys in fold_keys if keys.high is not None)
    starts = times.firsts(files, low, high, folds + 1)
    if any(a >= b for a, b in zip([low, *starts], starts, strict=False)):
        raise DataError(
            f"cv.folds is {folds}, and too many of the {rows} training rows share a time in column "
            f"{by}: they cannot be cut into {folds + 1} blocks (one a fold, and one before them). "
            "Set cv.folds lower, or name a finer column."
        )
    ends = [times.before(start, cv.gap, type_) for start in starts]
    cuts = sorted({*starts, *ends})
    edges = [0, *times.counts(files, cuts)[0].tolist(), rows]
    sizes = np.diff(edges)
    part_at = {cut: part for part, cut in enumerate(cuts, 1)}

    def filled(first: int, end: int) -> tuple[int, ...]:
        return tuple(part for part in range(first, end) if sizes[part])

    found = []
    for k, start in enumerate(starts):
        is_cut = cv.window is not None and k >= cv.window
        first = part_at[starts[k - (cv.window or 0)]] if is_cut else 0
        end = part_at[starts[k + 1]] if k + 1 < folds else len(sizes)
        fold = Fold(str(k), filled(first, part_at[ends[k]]), filled(part_at[start], end))
        if not fold.train:
            raise DataError(
                f"cv.gap is {cv.gap:g}, which leaves fold {k} no row to train on. "
                "Set cv.gap or cv.folds lower, or cv.window higher."
            )
        found.append(fold)
    cuts_array = np.array(cuts, dtype=np.int64)
    return FoldAssignment("time", len(sizes), type=type_, cuts=cuts_array), tuple(found)


def check_folds(manifest: Manifest) -> list[str]:
    """What a user should read of the folds, though they can be used.

    Raises:
        DataError: a fold whose training rows lack a class (groups, predefined folds) or have one
            alone (any kind).
    """
    assert manifest.cv is not None
    classes, numeric = manifest.label.classes, manifest.columns.numeric
    whole = manifest.statistics("train")
    lacking: dict[str, list[str]] = {}
    found = []
    for k, fold in enumerate(manifest.folds):
        statistics = manifest.fold_statistics(k)
        there = np.flatnonzero(statistics.class_counts)
        lost = np.flatnonzero((whole.class_counts > 0) & (statistics.class_counts == 0))
        if classes and len(there) == 1:
            raise DataError(
                f"Fold {fold.name} would be trained on rows of class {classes[there[0]]} alone: "
                "there is nothing to learn. Change cv.kind, cv.by or cv.folds."
            )
        if len(lost) and manifest.cv["kind"] in ("group", "predefined"):
            raise DataError(
                f"Every training row of class {classes[lost[0]]} is in fold {fold.name}, so the "
                "model that is validated on it could not learn that class. Set cv.folds lower, or "
                "name another column in cv.by."
            )
        for class_ in lost:
            lacking.setdefault(str(classes[class_]), []).append(fold.name)
        empty = [numeric[i] for i in np.flatnonzero(statistics.count == 0)]
        if empty:
            found.append(
                f"Missing in every row that fold {fold.name} is trained on: {', '.join(empty)}. "
                "Its scores are those of a model without it."
            )
    found += [
        f"No row of class {c} in what fold {', '.join(f)} trains on." for c, f in lacking.items()
    ]
    if manifest.cv["kind"] == "stratified":
        few = (whole.class_counts > 0) & (whole.class_counts < manifest.num_folds)
        found += [
            f"Class {classes[i]} has {whole.class_counts[i]} training rows, fewer than the "
            f"{manifest.num_folds} folds: some folds are validated without it."
            for i in np.flatnonzero(few)[:5]
        ]
    return found
