"""Predictions for a whole source: one Parquet file an input range, each committed by rename.

A killed job goes on where it stopped: a file that is there is whole. ``_SUCCESS`` (a JSON manifest)
is written last; without it the predictions are not complete. Row order is the source's.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ddlflow.data.source import Range, Source, ranges, read
from ddlflow.errors import DataError, InputError, SpecError
from ddlflow.infer.model import TrainedModel, load_model
from ddlflow.redact import redacted
from ddlflow.spec.explain import nearest

JOB, SUCCESS = "_job.json", "_SUCCESS"


class Map(Protocol):
    """Runs a function over items somewhere; results come in the items' order."""

    def __call__(self, function: Any, items: Sequence[Any], name: str, /) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One range to predict: small values that travel to a worker."""

    model: str  # folder
    identity: str  # of the model
    source: Source  # with this range's file alone
    part: Range
    keys: tuple[str, ...]
    out: str
    threads: int


def infer(
    model_folder: Path,
    location: str,
    out: Path,
    *,
    keys: Sequence[str],
    data_root: Path,
    threads: int,
    map_over: Map,
    fresh: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Predicts every row of a source into ``out``, and returns what ``_SUCCESS`` holds.

    ``trust_code`` is ``load_model``'s: it is asked here, before a worker loads anything.

    Raises:
        DataError: the source lacks a column of the model or a key.
        SpecError: ``out`` holds the predictions of another model or source, or a key has the
            name of a column that is written.
    """
    model = load_model(model_folder, trust_code=trust_code)
    keys = list(dict.fromkeys(keys))
    for name in keys:
        if name in model.output_names:
            raise SpecError(
                f"Key {name!r} has the name of a column of the predictions. Leave it out of the "
                "keys, or rename it in the source."
            )
    source = model.open(location, data_root)
    for name in keys:
        if name not in source.schema:
            near = nearest(name, source.schema)
            raise DataError(f"{source.location} has no column {name!r} to keep as a key.{near}")
    place = [redacted(source.address), source.fingerprint]
    job = {"model": model.identity, "source": place, "keys": keys}
    is_new = not out.exists()
    _claim(out, job, fresh)
    tasks = [
        Task(
            str(model_folder),
            model.identity,
            source.only(part),
            part,
            tuple(keys),
            str(out),
            threads,
        )
        for part in ranges(source)
    ]
    try:
        files = list(map_over(predict_range, tasks, "infer"))
    except InputError:
        if is_new:  # else it holds what an earlier command finished
            shutil.rmtree(out, ignore_errors=True)
        raise
    done = {
        **job,
        "model_digest": model.digest,
        "location": redacted(source.location),
        "rows": sum(file["rows"] for file in files),
        "files": files,
    }
    _write(out / SUCCESS, done)
    return done


def predict_range(task: Task) -> dict[str, Any]:
    """Predicts one range, unless its file is there; returns its name and rows."""
    path = Path(task.out) / f"part-{task.part.index:06d}.parquet"
    if not path.exists():
        model = _loaded(task.model, task.identity, task.threads)
        wanted = dict.fromkeys([*task.keys, *model.features])
        temporary = path.with_name(f".{path.name}.tmp")
        writer: pq.ParquetWriter | None = None
        try:
            for batch in read(task.source, task.part, list(wanted)):
                predicted = model.predict_features(batch)
                names = [*task.keys, *predicted.schema.names]
                arrays = [*(batch.column(key) for key in task.keys), *predicted.columns]
                table = pa.Table.from_arrays(arrays, names=names)
                if writer is None:
                    # Predictions are dense floats: a dictionary would be built in vain, and
                    # snappy saves little; measured 4 times as fast without both.
                    writer = pq.ParquetWriter(
                        temporary, table.schema, compression="none", use_dictionary=list(task.keys)
                    )
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            return {"file": None, "rows": 0}
        temporary.replace(path)
    return {"file": path.name, "rows": pq.read_metadata(path).num_rows}


@lru_cache(maxsize=2)
def _loaded(folder: str, identity: str, threads: int) -> TrainedModel:
    """A worker loads a model once, not once a range; and again where its folder has a new one."""
    import torch

    torch.set_num_threads(threads)
    return load_model(Path(folder), trust_code=True)  # `infer` has asked


def _claim(out: Path, job: dict[str, Any], fresh: bool) -> None:
    """Makes ``out`` this job's folder: what another job left there is refused, or cleared."""
    try:
        theirs = json.loads((out / JOB).read_text())
    except FileNotFoundError:
        theirs = None
        left = {f".{JOB}.tmp"}  # of a command that was killed as it began
        if out.is_dir() and {path.name for path in out.iterdir()} - left:
            raise SpecError(
                f"--out {out} holds other files. Name a folder that is empty or does not exist."
            ) from None
    if theirs is not None and (fresh or theirs != job):
        if not fresh:
            raise SpecError(
                f"--out {out} holds the predictions of another model, source or keys. Name another "
                "folder, or add --fresh to replace them."
            )
        for path in [*out.glob("*.parquet"), out / SUCCESS]:
            path.unlink(missing_ok=True)
    (out / SUCCESS).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / JOB, job)


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=1))
    temporary.replace(path)
