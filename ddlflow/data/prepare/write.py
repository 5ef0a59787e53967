"""The last pass: the rows of a task become shards, one a piece, split and part."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data import matrix
from ddlflow.data.columns import Columns, category_codes
from ddlflow.data.numbers import number_values
from ddlflow.data.prepare import split
from ddlflow.data.prepare.fold_assignment import FoldAssignment, parts_of
from ddlflow.data.prepare.piece_rows import PieceRows, RangeTask, piece_rows
from ddlflow.data.prepare.scan_task import ScanTask
from ddlflow.data.prepare.write_tensors import PieceTensors
from ddlflow.data.shards.manifest_parts import (
    Shard,
    SplitName,
    SplitStatistics,
    shards_from_json,
    shards_to_json,
    statistics_from_json,
    statistics_to_json,
)
from ddlflow.data.shards.shard import write_shard
from ddlflow.data.shards.statistics import Statistics, of_column, of_facts
from ddlflow.store.stored import StoredFile

Int64 = npt.NDArray[np.int64]
_HELD_OUT = split.SPLITS[1:]


_KEPT_BYTES = 64 << 20  # of buffers that a worker keeps for its next task: 56 columns


class _Buffers(threading.local):
    """Memory for one piece, used again for the next: fresh pages cost as much as filling them.

    Each thread of a worker has its own.
    """

    pairs: matrix.Pairs = matrix.new_pairs(0, 0)
    features: matrix.Float32 = np.empty((0, 0), np.float32)

    def reserve(self, rows: int, num_features: int) -> None:
        if self.features.shape[0] < rows or self.features.shape[1] != num_features:
            self.pairs = matrix.new_pairs(num_features + 2, rows)  # the last pair is scratch
            self.features = np.empty((rows, num_features), dtype=np.float32)

    def release(self) -> None:
        """Gives large ones back to the system."""
        if self.features.nbytes > _KEPT_BYTES:
            self.pairs, self.features = matrix.new_pairs(0, 0), np.empty((0, 0), np.float32)


_buffers = _Buffers()


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The shards of a task, in order, and the statistics of each."""

    shards: tuple[Shard, ...]
    statistics: tuple[SplitStatistics, ...]


def write_ranges(task: RangeTask) -> WriteResult:
    """Writes the shards of a task's ranges.

    Raises:
        DataError: a value that does not fit.
        DdlflowError: the disk is full or failed; no half-written shard is left.
    """
    scan = task.scan
    finished = _finished(scan)
    if finished is not None:
        return finished
    written: list[tuple[Shard, SplitStatistics]] = []
    for piece in piece_rows(task, (*scan.roles.numeric, *scan.roles.tensor_names)):
        written += _write_piece(task, piece, _buffers)
    _buffers.release()
    result = WriteResult(tuple(shard for shard, _ in written), tuple(own for _, own in written))
    statistics = [statistics_to_json(own) for own in result.statistics]
    shards = shards_to_json(result.shards)
    scan.written.save({"key": scan.key, "shards": shards, "statistics": statistics})
    return result


def _finished(scan: ScanTask) -> WriteResult | None:
    """What an earlier pass of the same task wrote, if all of it still stands."""
    found = scan.written.load()
    if not found or found["key"] != scan.key:
        return None
    shards = shards_from_json(found["shards"])
    files = [file for shard in shards for file in shard.files]
    if not all(scan.dataset.exists(file.path) for file in files):
        return None
    return WriteResult(shards, tuple(statistics_from_json(own) for own in found["statistics"]))


def _write_piece(
    task: RangeTask, piece: PieceRows, buffers: _Buffers
) -> list[tuple[Shard, SplitStatistics]]:
    """Encodes, shuffles and writes one piece, each of its cells to a shard of its own."""
    scan, columns, batch = task.scan, task.columns, piece.batch
    cells = _cells(task.assignment)
    order, bounds = _order(task, piece, _cell_of(task, piece), len(cells))

    buffers.reserve(batch.num_rows, len(columns.numeric))
    features, facts = _features(batch, columns, order, bounds, buffers)
    tensors: dict[str, npt.NDArray[Any]] = {"features": features} if columns.numeric else {}
    if columns.categories:
        codes = [category_codes(batch.column(c.name), c)[order] for c in columns.categories]
        tensors["categories"] = np.stack(codes, axis=1)
    tensors["label"] = np.take(piece.label, order, mode="clip")
    if scan.roles.weight is not None:
        weight = number_values(batch.column(scan.roles.weight), scan.roles.weight)
        tensors["weight"] = np.take(weight, order, mode="clip").astype(np.float32)
    tensors["row"] = np.take(piece.source_rows, order, mode="clip")
    of_fields = PieceTensors.read(batch, columns.tensors)

    written = []
    for cell, (name, part) in enumerate(cells):
        here = slice(bounds[cell], bounds[cell + 1])
        rows = int(bounds[cell + 1] - bounds[cell])
        if rows == 0:
            continue
        suffix = "" if part is None else f"-{part:04d}"
        path = f"shards/{name}/{scan.number:05d}-{piece.number:05d}{suffix}.arrow"
        found = {key: tensor[here] for key, tensor in tensors.items()}
        of_tensors = of_fields.write(scan.dataset, path, order[here])
        found |= of_tensors.columns
        sha256 = write_shard(StoredFile(scan.dataset, path), found)
        classes = piece.classes[order[here]]
        num_classes = len(columns.label.classes)
        counts = np.bincount(classes, minlength=num_classes)[:num_classes]
        statistics = of_facts(rows, facts[:, cell], counts)
        label = None if num_classes else _of_label(found["label"])
        weights = _weights_of(found, classes, max(num_classes, 1))
        mean = None if label is None else _weighted_mean(found, label)
        shard = Shard(path, name, part, rows, sha256, piece.first_row, of_tensors.values)
        own = SplitStatistics(name, part, statistics, label, weights, mean, of_tensors.statistics)
        written.append((shard, own))
    return written


def _cells(assignment: FoldAssignment | None) -> list[tuple[SplitName, int | None]]:
    """(split, part) of each cell: what a shard is of. The splits, the training rows in parts."""
    parts: list[int | None] = [None] if assignment is None else [*range(assignment.num_parts)]
    return [*((split.SPLITS[0], part) for part in parts), *((name, None) for name in _HELD_OUT)]


def _cell_of(task: RangeTask, piece: PieceRows) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The cell of each row."""
    if task.assignment is None:
        return piece.splits
    assert piece.numbers is not None
    cells = piece.splits.astype(np.uint16) + np.uint16(task.assignment.num_parts - 1)
    train = np.flatnonzero(piece.splits == split.TRAIN)
    if len(train):
        by = task.scan.roles.by
        column = None if by is None else piece.batch.column(by).take(pa.array(train))
        cells[train] = parts_of(
            task.assignment, piece.classes[train], piece.numbers[train], column, by or ""
        )
    return cells


def _features(
    batch: pa.RecordBatch,
    columns: Columns,
    order: npt.NDArray[np.intp],
    bounds: npt.NDArray[np.intp],
    buffers: _Buffers,
) -> tuple[matrix.Float32, npt.NDArray[np.float64]]:
    """The rows in the given order, and the facts [7, cells, F] of each cell's columns."""
    names, rows = columns.numeric, batch.num_rows
    cells = len(bounds) - 1
    facts = np.empty((7, cells, len(names)))
    scratch, pairs = buffers.pairs[-1, :rows], buffers.pairs[:-1, :rows]
    for first in range(0, len(names), 2):
        pair = pairs[first // 2]
        for lane, name in enumerate(names[first : first + 2]):
            with np.errstate(over="ignore"):  # beyond float32: infinite, as in float_values
                matrix.lanes(scratch)[:, lane] = _numbers(batch, name, columns)
        np.take(scratch, order, out=pair, mode="clip")
        for lane, name in enumerate(names[first : first + 2]):
            column = matrix.lanes(pair)[:, lane]
            values = column.copy()  # contiguous: the passes over it are several times faster
            for cell in range(cells):
                here = slice(bounds[cell], bounds[cell + 1])
                facts[:, cell, first + lane] = own = of_column(values[here])
                if own[3] == own[4]:  # one value in float32: is it one in the source?
                    truth = _numbers(batch, name, columns)[order[here]][np.isfinite(values[here])]
                    facts[3:5, cell, first + lane] = truth.min(), truth.max()
            if facts[-1, :, first + lane].any():
                column[:] = values  # where infinities are NaN now
    features = buffers.features[:rows]
    matrix.spread(pairs, features)
    return features, facts


def _numbers(batch: pa.RecordBatch, name: str, columns: Columns) -> npt.NDArray[Any]:
    return number_values(batch.column(name), name, columns.offsets.get(name, 0))


def _order(
    task: RangeTask, piece: PieceRows, cell_of: npt.NDArray[np.unsignedinteger[Any]], num_cells: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows in seeded random order, cell by cell, and where each cell starts and ends."""
    seed = task.scan.spec.seed & (2**64 - 1)
    key = np.array([seed, task.scan.number << 32 | piece.number], dtype=np.uint64)
    shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(len(cell_of))
    of = np.take(cell_of, shuffled, mode="clip")  # twice as fast as mode="raise", here and below
    if num_cells > 8:  # else a pass a cell is faster than a sort
        ends = np.cumsum(np.bincount(of, minlength=num_cells))
        return shuffled[np.argsort(of, kind="stable")], np.concatenate([[0], ends])
    cells = [shuffled[of == cell] for cell in range(num_cells)]
    return np.concatenate(cells), np.cumsum([0, *map(len, cells)])


def _of_label(label: npt.NDArray[np.float32]) -> Statistics:
    """The statistics of a regression's label [n], as of one feature."""
    facts = np.array(of_column(label.copy()), dtype=np.float64)[:, None]
    return of_facts(len(label), facts, np.zeros(0, dtype=np.int64))


def _weights_of(
    found: dict[str, npt.NDArray[Any]], classes: Int64, num_classes: int
) -> tuple[float, ...] | None:
    """The sum of the weights of each class, where rows have weights."""
    if "weight" not in found:
        return None
    own = found["weight"].astype(np.float64)
    return tuple(np.bincount(classes, weights=own, minlength=num_classes).tolist())


def _weighted_mean(found: dict[str, npt.NDArray[Any]], label: Statistics) -> float | None:
    """The mean of a regression's label by the rows' weights, where they have any.

    By distance from the plain mean, which may be great beside what the labels are apart.
    """
    if "weight" not in found or not (weight := found["weight"].astype(np.float64)).any():
        return None
    plain = float(label.mean[0])
    distances = found["label"].astype(np.float64) - plain
    return plain + float((distances * weight).sum() / weight.sum())
