"""The second pass: a range's rows become shards, one a piece and split."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data import matrix, split
from ddlflow.data.columns import Columns, category_codes, label_values, number_values
from ddlflow.data.keep import keep
from ddlflow.data.scan import ScanTask
from ddlflow.data.shard import write_shard
from ddlflow.data.source import read
from ddlflow.data.statistics import Statistics, of_column
from ddlflow.data.storage import load_json, save_json

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
class WriteTask:
    """One range's second pass.

    Attributes:
        scan: its first pass.
        columns: how values become numbers.
        first_row: the number of the range's first row in the source.
        before: int64 [C] rows of each class before the range.
        quotas: None where the split comes from a column or the range is of ``test_source``.
    """

    scan: ScanTask
    columns: Columns
    first_row: int
    before: Int64
    quotas: Quotas | None


@dataclass(slots=True)
class _Buffers:
    """Memory for one piece, used again for the next: fresh pages cost as much as filling them."""

    pairs: matrix.Pairs = field(default_factory=lambda: matrix.new_pairs(0, 0))
    features: matrix.Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def reserve(self, rows: int, num_features: int) -> None:
        if self.features.shape[0] < rows:
            self.pairs = matrix.new_pairs(num_features + 2, rows)  # the last pair is scratch
            self.features = np.empty((rows, num_features), dtype=np.float32)


def write_range(task: WriteTask) -> dict[str, Any]:
    """Writes a range's shards.

    Returns:
        JSON: shards (path, split, rows, sha256, statistics), in order.

    Raises:
        DataError: a value that does not fit.
        DdlflowError: the disk is full or failed; no half-written shard is left.
    """
    scan = task.scan
    folder = scan.work.parent
    finished = load_json(scan.written)
    if finished and finished["key"] == scan.key:
        paths = [folder / shard["path"] for shard in finished["shards"]]
        if all(path.exists() for path in paths):
            return dict(finished)
    shards: list[dict[str, Any]] = []
    first_row, before = task.first_row, task.before.copy()
    buffers = _Buffers()
    for piece, batch in enumerate(_pieces(task)):
        rows = batch.num_rows
        source_rows = np.arange(first_row, first_row + rows)
        mask = keep(batch, scan.roles, scan.spec, scan.labels).mask
        if mask is not None:
            batch = batch.filter(pa.array(mask))  # noqa: PLW2901 - what is left of it
            source_rows = source_rows[mask]
        if batch.num_rows:
            shards += _write_piece(
                task, piece, batch, source_rows=source_rows, before=before, buffers=buffers
            )
        first_row += rows
    result = {"key": scan.key, "shards": shards}
    save_json(scan.written, result)
    if scan.spool is not None:
        with contextlib.suppress(OSError):
            scan.spool.unlink()
    return result


def _pieces(task: WriteTask) -> Iterator[pa.RecordBatch]:
    scan = task.scan
    if scan.spool is None:
        wanted = [n for n in scan.roles.keys if n != scan.roles.split or not scan.is_test]
        wanted += [name for name in scan.roles.numeric if name not in wanted]
        yield from read(scan.source, scan.part, wanted)
    elif scan.spool.stat().st_size:
        with pa.memory_map(str(scan.spool)) as mapped, pa.ipc.open_file(mapped) as file:
            for index in range(file.num_record_batches):
                yield file.get_batch(index)


def _write_piece(
    task: WriteTask,
    piece: int,
    batch: pa.RecordBatch,
    *,
    source_rows: Int64,
    before: Int64,
    buffers: _Buffers,
) -> list[dict[str, Any]]:
    """Encodes, splits, shuffles and writes one piece; adds its classes to ``before``."""
    scan, columns = task.scan, task.columns
    label = label_values(batch.column(columns.label.name), columns.label)
    is_class = columns.label.kind != "regression"
    classes = label.astype(np.int64) if is_class else np.zeros(len(label), dtype=np.int64)
    splits = _splits(task, batch, classes, before)
    before += np.bincount(classes, minlength=len(before))
    order, bounds = _order(task, piece, splits)

    buffers.reserve(batch.num_rows, len(columns.numeric))
    features, facts = _features(batch, columns.numeric, order, bounds, buffers)
    tensors: dict[str, npt.NDArray[Any]] = {"features": features} if columns.numeric else {}
    if columns.categories:
        codes = [category_codes(batch.column(c.name), c)[order] for c in columns.categories]
        tensors["categories"] = np.stack(codes, axis=1)
    tensors["label"] = np.take(label, order, mode="clip")
    tensors["row"] = np.take(source_rows, order, mode="clip")

    shards = []
    for s, name in enumerate(split.SPLITS):
        part = slice(bounds[s], bounds[s + 1])
        rows = int(bounds[s + 1] - bounds[s])
        if rows == 0:
            continue
        path = f"shards/{name}/{scan.number:05d}-{piece:05d}.arrow"
        found = {key: tensor[part] for key, tensor in tensors.items()}
        sha256 = write_shard(scan.work.parent / path, found)
        num_classes = len(columns.label.classes)
        counts = np.bincount(classes[order[part]], minlength=num_classes)[:num_classes]
        statistics = _statistics(rows, facts[:, s], counts)
        shards.append(
            {"path": path, "split": name, "rows": rows, "sha256": sha256}
            | {"statistics": statistics.to_json()}
        )
    return shards


def _features(
    batch: pa.RecordBatch,
    names: tuple[str, ...],
    order: npt.NDArray[np.intp],
    bounds: npt.NDArray[np.intp],
    buffers: _Buffers,
) -> tuple[matrix.Float32, npt.NDArray[np.float64]]:
    """The rows in the given order, and the facts [7, splits, F] of each split's columns."""
    rows = batch.num_rows
    facts = np.empty((7, len(split.SPLITS), len(names)))
    scratch, pairs = buffers.pairs[-1, :rows], buffers.pairs[:-1, :rows]
    for first in range(0, len(names), 2):
        pair = pairs[first // 2]
        for lane, name in enumerate(names[first : first + 2]):
            with np.errstate(over="ignore"):  # beyond float32: infinite, as in float_values
                matrix.lanes(scratch)[:, lane] = number_values(batch.column(name), name)
        np.take(scratch, order, out=pair, mode="clip")
        for lane in range(len(names[first : first + 2])):
            column = matrix.lanes(pair)[:, lane]
            values = column.copy()  # contiguous: the passes over it are several times faster
            for s in range(len(split.SPLITS)):
                facts[:, s, first + lane] = of_column(values[bounds[s] : bounds[s + 1]])
            if facts[-1, :, first + lane].any():
                column[:] = values  # where infinities are NaN now
    features = buffers.features[:rows]
    matrix.spread(pairs, features)
    return features, facts


def _splits(
    task: WriteTask, batch: pa.RecordBatch, classes: Int64, before: Int64
) -> npt.NDArray[np.uint8]:
    """The split of each row."""
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
    )


def _order(
    task: WriteTask, piece: int, splits: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows in seeded random order, split by split, and where each split starts and ends."""
    seed = task.scan.spec.seed & (2**64 - 1)
    key = np.array([seed, task.scan.number << 32 | piece], dtype=np.uint64)
    shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(len(splits))
    of = np.take(splits, shuffled, mode="clip")  # twice as fast as mode="raise", here and below
    parts = [shuffled[of == s] for s in range(len(split.SPLITS))]  # faster than a sort of them
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def _statistics(rows: int, facts: npt.NDArray[np.float64], class_counts: Int64) -> Statistics:
    count, mean, m2, minimum, maximum, missing, infinite = facts
    return Statistics(
        rows=rows,
        count=count.astype(np.int64),
        mean=mean,
        m2=m2,
        minimum=minimum,
        maximum=maximum,
        missing=missing.astype(np.int64),
        infinite=infinite.astype(np.int64),
        class_counts=class_counts,
    )
