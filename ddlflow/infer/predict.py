"""Predictions for a whole source: one Parquet file an input range, each committed by rename.

A killed job goes on where it stopped: a file that is there is whole. ``_SUCCESS`` (a JSON manifest)
is written last; without it the predictions are not complete. Row order is the source's.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ddlflow.data.fields import tensor_field
from ddlflow.data.prepare.row_splits import RowSplits, row_splits
from ddlflow.data.sources.source import Range, Source, ranges
from ddlflow.errors import DataError, InputError, SpecError
from ddlflow.infer import unfamiliar
from ddlflow.infer.as_written import as_written
from ddlflow.infer.model import TrainedModel, load_model
from ddlflow.infer.predictions import PredictedRange, PredictionJob, Predictions
from ddlflow.redact import redacted
from ddlflow.spec.explain import nearest
from ddlflow.store.files import remove_leftovers
from ddlflow.store.folder import FolderStore
from ddlflow.store.store import Place, Store, open_store, store_of

FORMAT = 2  # of the predictions: those of another are not gone on with
JOB, SUCCESS = "_job.json", "_SUCCESS"
SPLIT = "split"
COUNTS = b"ddlflow.counts"  # in a file's metadata: what `unfamiliar` counts


class Map(Protocol):
    """Runs a function over items somewhere; results come in the items' order."""

    def __call__(self, function: Any, items: Sequence[Any], name: str, /) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """The data set that was made of the source that is predicted.

    Attributes:
        dataset: its folder.
        is_test: the source is its ``data.test_source``.
    """

    dataset: str | Path
    is_test: bool


@dataclass(frozen=True, slots=True)
class RangeToPredict:
    """One range to predict: small values that travel to a worker.

    Attributes:
        model: its folder.
        identity: of the model.
        source: with this range's file alone.
        part: the range.
        keys: columns to copy beside the predictions.
        splits: where the split of each row is found, if it is wanted.
        out: the folder of the predictions.
        threads: to compute with.
    """

    model: str
    identity: str
    source: Source
    part: Range
    keys: tuple[str, ...]
    splits: RowSplits | None
    out: str
    threads: int


def infer(
    model_folder: Place,
    location: str,
    out: Place,
    *,
    keys: Sequence[str],
    data_root: Path,
    threads: int,
    map_over: Map,
    fresh: bool = False,
    trust_code: bool = False,
    prepared: PreparedSource | None = None,
) -> Predictions:
    """Predicts every row of a source into ``out``.

    Args:
        model_folder: of the model.
        location: of the source.
        out: the folder of the predictions.
        keys: columns of the source to copy; of CSV files as the text that stands there.
        data_root: the folder that relative locations lie under.
        threads: of a worker.
        map_over: runs a function over items somewhere.
        fresh: replace what another job left in ``out``.
        trust_code: as in ``load_model``; it is asked here, before a worker loads anything.
        prepared: the data set that was made of this source, if the split of each row is wanted.

    Raises:
        DataError: the source lacks a column of the model or a key, or one is of a type that does
            not tell what the model was trained on.
        SpecError: ``out`` holds the predictions of another model or source, or a key has the
            name of a column that is written.
    """
    model = load_model(model_folder, trust_code=trust_code)
    keys = list(dict.fromkeys(keys))
    _check_keys(model, keys)
    source = model.reading.open(location, data_root)
    for name in keys:
        if name not in source.schema:
            near = nearest(name, source.schema)
            raise DataError(f"{source.location} has no column {name!r} to keep as a key.{near}")
        if name not in model.inputs and tensor_field(name, source.schema[name]) is not None:
            raise DataError(
                f"Key {name!r} of {source.location} is a column of tensors. Name columns of single "
                "values."
            )
    parts = ranges(source)
    splits: Sequence[RowSplits | None] = [None] * len(parts)
    if prepared is not None and SPLIT not in keys:  # a key of that name says it already
        splits = row_splits(prepared.dataset, len(parts), is_test=prepared.is_test)
    job = PredictionJob(
        format=FORMAT,
        model=model.identity,
        source=[redacted(source.address), source.fingerprint],
        keys=keys,
        split=next((split.digest for split in splits if split is not None), None),
    )
    out = store_of(out)
    is_new = _claim(out, job, fresh)
    tasks = [
        RangeToPredict(
            store_of(model_folder).location,
            model.identity,
            source.only(part),
            part,
            tuple(keys),
            split,
            out.location,
            threads,
        )
        for part, split in zip(parts, splits, strict=True)
    ]
    try:
        files: list[PredictedRange] = list(map_over(predict_range, tasks, "infer"))
    except InputError:
        if is_new:  # else it holds what an earlier command finished
            with suppress(OSError):
                out.remove_all()
        raise
    rows = sum(file.rows for file in files)
    counts = unfamiliar.total(file.counts for file in files)
    done = Predictions(
        job=job,
        model_digest=model.digest,
        location=redacted(source.location),
        rows=rows,
        described=model.task.described(),
        columns=counts,
        notes=unfamiliar.notes(counts, rows, model.usual),
        files=files,
    )
    _write(out, SUCCESS, done.to_json())
    return done


def _check_keys(model: TrainedModel, keys: Sequence[str]) -> None:
    for name in keys:
        if name in model.output_names:
            raise SpecError(
                f"Key {name!r} has the name of a column of the predictions. Leave it out of the "
                "keys, or rename it in the source."
            )


def predict_range(task: RangeToPredict) -> PredictedRange:
    """Predicts one range, unless its file is there."""
    out, name = open_store(task.out), f"part-{task.part.index:06d}.parquet"
    if not out.exists(name):
        return _write_range(task, out, name)
    written = pq.read_metadata(out.local(name))
    counts = json.loads(written.metadata[COUNTS])
    return PredictedRange(name, written.num_rows, counts)


def _write_range(task: RangeToPredict, out: Store, name: str) -> PredictedRange:
    """Writes a range's file, its counts among the file's own facts; of no rows there is none."""
    model = _loaded(task.model, task.identity, task.threads)
    counts: unfamiliar.Counts = {}
    rows = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for columns, batch in as_written(task.source, task.part, task.keys, model):
            if task.splits is not None:
                columns[SPLIT] = task.splits.of_piece(rows, batch.num_rows)
            texts = list(columns)
            encoded = model.columns.encode(batch)
            predicted = model.predict_encoded(encoded)
            columns |= dict(zip(predicted.schema.names, predicted.columns, strict=True))
            table = pa.table(columns)
            if writer is None:
                temporary = stack.enter_context(out.writing(name))
                # Predictions are dense floats: a dictionary would be built in vain, and
                # snappy saves little; measured 4 times as fast without both.
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        temporary, table.schema, compression="none", use_dictionary=texts
                    )
                )
            writer.write_table(table)
            counts = unfamiliar.total([counts, unfamiliar.counts_of(encoded)])
            rows += batch.num_rows
        if task.splits is not None:
            task.splits.check(rows)
        if writer is None:
            return PredictedRange(None, 0, {})
        writer.add_key_value_metadata({COUNTS: json.dumps(counts)})
    return PredictedRange(name, rows, counts)


@lru_cache(maxsize=2)
def _loaded(folder: str, identity: str, threads: int) -> TrainedModel:
    """A worker loads a model once, not once a range; and again where its folder has a new one."""
    import torch

    torch.set_num_threads(threads)
    return load_model(folder, trust_code=True)  # `infer` has asked


def _claim(out: Store, job: PredictionJob, fresh: bool) -> bool:
    """Makes ``out`` this job's place: what another job left there is refused, or cleared.

    Returns:
        Whether nothing was there.
    """
    is_new = out.make()
    where = out.location
    try:
        theirs = json.loads(out.read(JOB))
    except FileNotFoundError:
        theirs = None
        # A command that was killed as it began leaves a temporary file, which is not listed.
        if not is_new and (out.list() or out.parts()):
            raise SpecError(
                f"--out {where} holds other files. Name a folder that is empty or does not exist."
            ) from None
    except ValueError:  # damaged: nobody knows whose
        theirs = {}
    if theirs is not None and (fresh or theirs != asdict(job)):
        if not fresh:
            raise SpecError(
                f"--out {where} holds the predictions of another model, source or keys. Name "
                "another folder, or add --fresh to replace them."
            )
        for name in out.list():
            if name.endswith(".parquet") and "/" not in name:
                out.remove(name)
    out.remove(SUCCESS)
    if isinstance(out, FolderStore):
        remove_leftovers(out.root)
    _write(out, JOB, asdict(job))
    return is_new


def _write(out: Store, name: str, values: Mapping[str, Any]) -> None:
    out.write(name, json.dumps(values, indent=1).encode())
