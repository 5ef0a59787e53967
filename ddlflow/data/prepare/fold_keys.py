"""The pass between scan and write: what the training rows hold in the column of the folds.

Only folds by a column need it. Which rows are trained on follows from the scan of all ranges, so
this cannot be part of it; the pass reads the key columns alone. A range leaves the rows of each
group, or the times of its rows as sorted runs; both stay in files of the work folder, and what is
held in memory is bounded by the number of groups.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ddlflow.data.columns import missing_mask
from ddlflow.data.prepare import split
from ddlflow.data.prepare.fold_assignment import names_of
from ddlflow.data.prepare.piece_rows import PieceRows, RangeTask, piece_rows
from ddlflow.data.prepare.row_filter import needs_features
from ddlflow.data.prepare.times import Times, ordinals, unusable
from ddlflow.errors import DataError
from ddlflow.store.stored import StoredFile

# Measured with 950,000 groups of text in 8 million rows: 0.23 GB of memory more at the peak.
MAX_GROUPS = 1_000_000
_MERGE_ROWS = 4_000_000  # values held before they are merged


@dataclass(frozen=True, slots=True)
class FoldKeys:
    """What the training rows of a task hold in the column that folds are made by.

    Attributes:
        missing: rows without a value.
        only: of groups, by class the one group that all its rows are in.
        spread: of groups, the classes that are in several.
        runs: of times, the rows of each sorted run in the task's file.
        low: the least time.
        high: the largest one.
    """

    missing: int
    only: dict[int, Any] = field(default_factory=dict)
    spread: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    low: int | None = None
    high: int | None = None


def read_fold_keys(task: RangeTask) -> FoldKeys:
    """Reads the training rows of a task for the column that folds are made by.

    Raises:
        DataError: a value that does not fit, or too many groups.
    """
    scan = task.scan
    assert scan.cv is not None
    result = StoredFile(scan.work, f"fold-keys-{scan.number:05d}.json")
    found = result.load()
    if found and found["key"] == scan.key and file_of(task).exists():
        value = found["keys"]
        tuples = {name: tuple(value[name]) for name in ("spread", "runs")}
        return FoldKeys(**{**value, **tuples, "only": dict(value["only"])})
    features = (*scan.roles.numeric, *scan.roles.tensor_names) if needs_features(scan.spec) else ()
    train = (_of_train(task, piece) for piece in piece_rows(task, features))
    keys = _times(task, train) if scan.cv.kind == "time" else _groups(task, train)
    value = asdict(keys) | {"only": list(keys.only.items())}  # JSON has keys of text alone
    result.save({"key": scan.key, "keys": value})
    return keys


def file_of(task: RangeTask) -> StoredFile:
    """The file of a task's groups or times."""
    return StoredFile(task.scan.work, f"fold-keys-{task.scan.number:05d}.data")


def _of_train(task: RangeTask, piece: PieceRows) -> tuple[pa.Array, np.ndarray]:
    """The column and the classes of a piece's training rows."""
    by = task.scan.roles.by
    assert by is not None
    mask = piece.splits == split.TRAIN
    return piece.batch.column(by).filter(pa.array(mask)), piece.classes[mask]


def _times(task: RangeTask, train: Iterable[tuple[pa.Array, np.ndarray]]) -> FoldKeys:
    by, missing, runs = task.scan.roles.by, 0, []
    assert by is not None
    lows, highs = [], []
    with file_of(task).made() as temporary, temporary.open("wb") as file:
        for column, _ in train:
            bad = unusable(column)
            missing += int(np.count_nonzero(bad))
            times = ordinals(column.filter(pa.array(~bad)), by, task.scan.source.schema[by])
            times = np.sort(times)
            if len(times):
                runs.append(len(times))
                lows.append(int(times[0]))
                highs.append(int(times[-1]))
                file.write(times.tobytes())
    low, high = min(lows, default=None), max(highs, default=None)
    return FoldKeys(missing, runs=tuple(runs), low=low, high=high)


def _groups(task: RangeTask, train: Iterable[tuple[pa.Array, np.ndarray]]) -> FoldKeys:
    by, missing = task.scan.roles.by, 0
    assert by is not None
    held: list[pa.Table] = []
    only: dict[int, Any] = {}
    spread: set[int] = set()
    for column, classes in train:
        bad = missing_mask(column)
        missing += int(np.count_nonzero(bad))
        names = names_of(column.filter(pa.array(~bad)), by, task.scan.source.schema[by])
        if not len(names):
            continue
        encoded = names.dictionary_encode()
        values, codes = encoded.dictionary, encoded.indices.to_numpy()
        held.append(pa.table({"value": values, "rows": np.bincount(codes)}))
        if sum(table.num_rows for table in held) > _MERGE_ROWS:
            held = [merge(held, by)]
        _note_classes(codes, classes[~bad], values, only, spread)
    merged = merge(held, by)
    with (
        file_of(task).made() as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, merged.schema) as out,
    ):
        out.write_table(merged)
    return FoldKeys(missing, only, tuple(sorted(spread)))


def _note_classes(
    codes: np.ndarray, classes: np.ndarray, values: pa.Array, only: dict[int, Any], spread: set[int]
) -> None:
    """Notes which classes lie in one group so far, and in which."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    low = np.minimum.reduceat(codes[order], starts)
    high = np.maximum.reduceat(codes[order], starts)
    for class_, first, last in zip(present.tolist(), low.tolist(), high.tolist(), strict=True):
        groups = {values[first].as_py(), values[last].as_py()}
        note_groups(class_, groups, only, spread)


def note_groups(class_: int, groups: set[Any], only: dict[int, Any], spread: set[int]) -> None:
    """Notes groups that a class was seen in: while there is one alone, it is kept by name."""
    if class_ in spread:
        return
    if class_ in only:
        groups = {*groups, only[class_]}
    if len(groups) > 1:
        spread.add(class_)
        only.pop(class_, None)
    else:
        only[class_] = next(iter(groups))


def merge(tables: list[pa.Table], by: str) -> pa.Table:
    """The rows of each value over several tables of value and rows.

    Raises:
        DataError: more than ``MAX_GROUPS`` values.
    """
    if not tables:
        return pa.table({"value": pa.array([], pa.string()), "rows": pa.array([], pa.int64())})
    together = pa.concat_tables(tables).group_by("value", use_threads=False)
    found = together.aggregate([("rows", "sum")])
    if found.num_rows > MAX_GROUPS:
        raise DataError(
            f"cv.by names column {by}, which has more than {MAX_GROUPS:,} different values. "
            "Name a column of larger groups, or leave cv.kind out."
        )
    return pa.table({"value": found["value"], "rows": found["rows_sum"]})


def groups_of(tasks: list[RangeTask], by: str) -> tuple[list[Any], list[int]]:
    """The groups in order of their value, and the rows of each, over all ranges."""
    held: list[pa.Table] = []
    for task in tasks:
        with pa.OSFile(str(file_of(task).here())) as opened, pa.ipc.open_file(opened) as file:
            table = file.read_all()
        if table.num_rows:
            held.append(table)
        if sum(table.num_rows for table in held) > _MERGE_ROWS:
            held = [merge(held, by)]
    merged = merge(held, by).sort_by("value")
    return merged["value"].to_pylist(), merged["rows"].to_pylist()


def times_of(tasks: list[RangeTask], fold_keys: list[FoldKeys]) -> list[Times]:
    """The files of times over all ranges."""
    return [Times(file_of(task), keys.runs) for task, keys in zip(tasks, fold_keys, strict=True)]
