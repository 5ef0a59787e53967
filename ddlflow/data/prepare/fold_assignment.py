"""Which part of the training rows a row is in: exact sizes, and no global shuffle.

Plain and stratified folds are dealt as cards are: each training row has a place in one seeded
order, and place p goes to fold p mod k. For stratified folds the order is class after class, so
both the folds' sizes and their counts of every class differ by at most one. The place follows
from the row's number among the training rows of its class (`split.py`), so a worker needs to know
only how many rows of each class come before its own.

Group and predefined folds look their value up in a table; folds in time compare with a few cuts.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.convert import text_or_whole
from ddlflow.data.prepare import split
from ddlflow.data.prepare.times import ordinals
from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError
from ddlflow.store.stored import StoredFile

Int64 = npt.NDArray[np.int64]

# Keeps the order of folds apart from that of splits, whose seed is often the same number.
_STREAM = 1


@dataclass(frozen=True, slots=True)
class FoldAssignment:
    """How a training row's part is found.

    Attributes:
        kind: named is group or predefined.
        num_parts: how many there are.
        seed: of plain and stratified folds.
        counts: int64 [C] training rows of each class; of plain and stratified folds.
        type: of the column that folds are made by, for named and time.
        table: for named, an Arrow file of value and part.
        cuts: for time, int64 [num_parts - 1], rising: the first time of each part but the first,
            as ``ordinals`` has it.
    """

    kind: Literal["plain", "stratified", "named", "time"]
    num_parts: int
    seed: int = 0
    counts: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    type: pa.DataType | None = None
    table: StoredFile | None = None
    cuts: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def parts_of(
    assignment: FoldAssignment, classes: Int64, numbers: Int64, by: pa.Array | None, name: str
) -> Int64:
    """The part of each training row.

    Args:
        assignment: how it is found.
        classes: [n] the rows' classes.
        numbers: [n] each row's own number among the training rows of its class, from 0.
        by: [n] the column that folds are made by; None for plain and stratified.
        name: its name.

    Returns:
        int64 [n], each below ``num_parts``.
    """
    if assignment.kind == "plain":
        return _plain(assignment, classes, numbers)
    if assignment.kind == "stratified":
        return _stratified(assignment, classes, numbers)
    assert by is not None
    assert assignment.type is not None
    if assignment.kind == "time":
        times = ordinals(by, name, assignment.type)
        return np.searchsorted(assignment.cuts, times, side="right").astype(np.int64)
    assert assignment.table is not None
    return _looked_up(assignment.table, names_of(by, name, assignment.type).dictionary_encode())


def _looked_up(table_file: StoredFile, names: pa.DictionaryArray) -> Int64:
    """The part of each name. The table is looked up in the piece's names, and not they in it: so
    the hash table that is built is the smaller one (twice as fast with 950,000 groups of text)."""
    part_of = np.zeros(len(names.dictionary), dtype=np.int64)
    with pa.memory_map(str(table_file.here())) as mapped, pa.ipc.open_file(mapped) as file:
        table = file.get_batch(0)
        found = pc.index_in(table.column("value"), value_set=names.dictionary)
        here = found.is_valid().to_numpy(zero_copy_only=False)
        part_of[found.drop_null().to_numpy()] = table.column("part").to_numpy()[here]
    parts: Int64 = part_of[names.indices.to_numpy()]
    return parts


def _plain(assignment: FoldAssignment, classes: Int64, numbers: Int64) -> Int64:
    starts = np.cumsum(assignment.counts) - assignment.counts
    size = np.array([assignment.counts.sum()], dtype=np.uint64)
    keys = split.class_keys((assignment.seed, _STREAM), 1)
    place = split.places((starts[classes] + numbers).astype(np.uint64), size, keys)
    return (place % np.uint64(assignment.num_parts)).astype(np.int64)


def _stratified(assignment: FoldAssignment, classes: Int64, numbers: Int64) -> Int64:
    counts, parts = assignment.counts, np.empty(len(classes), dtype=np.int64)
    starts = np.cumsum(counts) - counts
    keys = split.class_keys((assignment.seed, _STREAM), len(counts))
    rows, bounds = split.by_class(classes, len(counts))
    for of, start, stop in split.runs(classes, rows, bounds):
        number = numbers[rows[start:stop]].astype(np.uint64)
        place = split.places(number, counts[of].astype(np.uint64), keys[:, of])
        parts[rows[start:stop]] = (starts[of] + place.astype(np.int64)) % assignment.num_parts
    return parts


def balanced(sizes: Sequence[int], folds: int) -> list[int]:
    """The fold of each group: the largest group to the emptiest fold, and so on.

    Source: longest-processing-time-first (Graham 1969, "Bounds on multiprocessing timing
    anomalies"), as scikit-learn's ``GroupKFold`` has it. Ties go to the group that comes first and
    to the fold of the lower number.
    """
    emptiest = [(0, fold) for fold in range(folds)]
    found = [0] * len(sizes)
    for group in sorted(range(len(sizes)), key=lambda g: -sizes[g]):
        rows, fold = emptiest[0]
        found[group] = fold
        heapq.heapreplace(emptiest, (rows + sizes[group], fold))
    return found


def names_of(array: pa.Array, name: str, type_: pa.DataType) -> pa.Array:
    """Values that name groups, as text or int64; NaN becomes null.

    Args:
        array: the column.
        name: its name.
        type_: its type in the source as a whole; a file's own may be narrower.

    Raises:
        DataError: a number that is not whole.
    """
    try:
        return text_or_whole(array, is_text=kind_of(type_) != "number")
    except pa.ArrowInvalid as error:
        raise DataError(
            f"cv.by names column {name}, which holds something else than text or whole numbers: "
            f"{error}. List it in data.text, round it in the source, or name another column."
        ) from error
