"""From a source to a data set: scan the ranges, make the plan, write the shards, seal it.

Two passes over the ranges, in bounded memory, and one over the key columns for folds by a column.
Nothing is shuffled between workers: the bytes of a shard depend on the source, the settings and
the range alone. A prepare that was stopped goes on from the ranges that are finished.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ddlflow.data.columns import Columns
from ddlflow.data.prepare.converted_sources import convert_sources
from ddlflow.data.prepare.fold_keys import read_fold_keys
from ddlflow.data.prepare.folds import check_folds, decide_folds
from ddlflow.data.prepare.left_out import check_present, warnings_of
from ddlflow.data.prepare.range_plan import learn, range_tasks
from ddlflow.data.prepare.row_filter import LeftOut
from ddlflow.data.prepare.scan import scan_ranges
from ddlflow.data.prepare.scan_task import WORK, ScanTask
from ddlflow.data.prepare.scan_totals import totals_of
from ddlflow.data.prepare.small_ranges import group_small_ranges
from ddlflow.data.prepare.unresolved import unresolved
from ddlflow.data.prepare.write import WriteResult, write_ranges
from ddlflow.data.roles import Labels, Roles, choose
from ddlflow.data.shards.manifest import (
    FORMAT,
    NAME,
    Fold,
    Manifest,
    Shard,
    SplitName,
    SplitStatistics,
)
from ddlflow.data.shards.manifest_parts import add_statistics
from ddlflow.data.shards.statistics import empty, merge
from ddlflow.data.sources.derive import Derived, needed, only
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.schema import kind_of, meant
from ddlflow.data.sources.source import Source, ranges
from ddlflow.data.sources.trained_types import Types, as_parsed
from ddlflow.errors import DataError, InputError
from ddlflow.redact import redacted_values
from ddlflow.spec.pipeline import Cv, Data
from ddlflow.store.files import remove_leftovers, writing
from ddlflow.store.folder import FolderStore
from ddlflow.store.store import Place, Store, store_of

Map = Callable[[Callable[[Any], Any], list[Any], str], Iterable[Any]]


def prepare(
    spec: Data,
    labels: Labels,
    *,
    data_root: Path,
    folder: Place,
    map: Map,  # noqa: A002 - it is the engine's map
    cv: Cv | None = None,
    converted: Store | None = None,
    fresh: bool = False,
) -> Manifest:
    """Makes the data set in ``folder``.

    Args:
        spec: the pipeline's data section; its source is a location.
        labels: how the label is read.
        data_root: the folder that relative locations lie under.
        folder: of this data set alone, which every worker sees.
        map: ``map(function, items, name)`` runs a function over items somewhere and yields the
            results in order; ``name`` is for the progress bar.
        cv: how the training rows are dealt to folds, if they are; of repeated folds, one repeat
            (``Cv.of_repeat``).
        converted: where text that was parsed is kept as Parquet, for the next data set of the same
            source; a store that every worker sees. None: it goes with this call.
        fresh: parse it again all the same.

    Raises:
        DataError: the source cannot be read or holds what it may not hold; nothing is left behind.
        DdlflowError: the storage is full or failed; the same call goes on from what is finished.
    """
    sources, roles = open_sources(spec, labels, data_root, cv)
    dataset = store_of(folder)
    with writing(dataset.location):
        dataset.at(WORK).make()
        dataset.remove(NAME)
    kept = convert_sources(sources, roles, converted or dataset.at(f"{WORK}/converted"))
    if fresh:
        kept.forget()
    sources = [*kept.sources]
    try:
        scans = _scan_tasks(spec, labels, sources, roles, dataset=dataset, cv=cv)
        found = totals_of(scans, map(scan_ranges, scans, "scan"))
        columns, lost = learn(scans, found, map)
        for test in sources[1:]:
            _check_test_types(test, columns)
        tasks, train = range_tasks(scans, found, columns)
        folds: tuple[Fold, ...] = ()
        if cv is not None:
            own = [task for task in tasks if not task.scan.is_test]
            fold_keys = list(map(read_fold_keys, own, "folds")) if cv.by is not None else []
            assignment, folds = decide_folds(own, fold_keys, train)
            tasks = [replace(task, assignment=assignment) for task in tasks]
        shards, groups = _written(map(write_ranges, tasks, "write"))
        manifest = _manifest(spec, sources, columns, shards=shards, groups=groups, lost=lost)
        blind = unresolved(manifest, found.points)
        warnings = (*roles.notes, *manifest.warnings, *blind)
        range_rows = tuple(rows for rows_of in found.range_rows for rows in rows_of)
        manifest = replace(manifest, warnings=warnings, range_rows=range_rows)
        if cv is not None:
            manifest = replace(manifest, cv=cv.fold_settings(labels), folds=folds)
            manifest = replace(manifest, warnings=(*manifest.warnings, *check_folds(manifest)))
    except InputError:
        kept.forget()
        _clear(dataset, shards=True)
        raise
    _clear(dataset, shards=False)
    _remove_strangers(dataset, manifest)
    manifest.save(dataset)
    return manifest


def _scan_tasks(
    spec: Data,
    labels: Labels,
    sources: list[Source],
    roles: Roles,
    *,
    dataset: Store,
    cv: Cv | None,
) -> list[ScanTask]:
    fold_settings = cv.fold_settings(labels) if cv is not None else None
    fingerprints = [source.fingerprint for source in sources]
    # A URL that is signed anew each day names the same data.
    asked = redacted_values(spec.model_dump(mode="json"))
    key = json.dumps([FORMAT, asked, labels, fold_settings, *fingerprints])
    digest = hashlib.sha256(key.encode()).hexdigest()
    tasks: list[ScanTask] = []
    for is_test, source in enumerate(sources):
        for parts in group_small_ranges(source, ranges(source)):
            tasks.append(
                ScanTask(
                    key=digest,
                    source=source.only(*parts),
                    ranges=parts,
                    number=len(tasks),
                    roles=roles,
                    spec=spec,
                    labels=labels,
                    is_test=bool(is_test),
                    dataset=dataset,
                    cv=cv,
                )
            )
    return tasks


def _written(
    results: Iterable[WriteResult],
) -> tuple[tuple[Shard, ...], tuple[SplitStatistics, ...]]:
    """All shards, and the statistics of each split and part, merged as the shards come."""
    shards: list[Shard] = []
    totals: dict[tuple[SplitName, int | None], SplitStatistics] = {}
    for result in results:
        shards += result.shards
        for own in result.statistics:
            key = own.split, own.fold
            totals[key] = add_statistics(totals.get(key), own)
    return tuple(shards), tuple(totals.values())


def _manifest(
    spec: Data,
    sources: list[Source],
    columns: Columns,
    *,
    shards: tuple[Shard, ...],
    groups: tuple[SplitStatistics, ...],
    lost: LeftOut,
) -> Manifest:
    """Judges the training rows."""
    start = empty(len(columns.numeric), len(columns.label.classes))
    every = merge((group.statistics for group in groups), start)
    gone = (every.missing + every.infinite).tolist()
    replaced = dict(zip(columns.numeric, gone, strict=True)) | lost.missing
    for one in columns.tensors:
        replaced[one.name] = sum(group.tensors[one.name].replaced for group in groups)
    manifest = Manifest(
        columns=columns,
        shards=shards,
        groups=groups,
        source=hashlib.sha256("".join(s.fingerprint for s in sources).encode()).hexdigest(),
        settings=redacted_values(spec.model_dump(mode="json")),
        dropped=lost.rows,
        dropped_columns=lost.columns,
        replaced={name: count for name, count in replaced.items() if count},
    )
    if manifest.rows("train") == 0:
        raise DataError("No row is left to train on. Correct data.split, or give more rows.")
    if manifest.has_weights and not sum(manifest.weights("train")[0]) > 0:
        raise DataError(
            f"data.weight names column {spec.weight}, which is 0 in every training row. Name "
            "another column."
        )
    train = manifest.statistics("train")
    of_tensors = manifest.tensor_statistics()
    check_present(columns.numeric, train, of_tensors)
    notes = list(dict.fromkeys(note for source in sources for note in source.notes))
    constant = [columns.numeric[i] for i in np.flatnonzero(train.minimum == train.maximum)]
    constant += [name for name, one in of_tensors.items() if one.is_constant]
    rare = [category.name for category in columns.categories if not category.values]
    return replace(
        manifest,
        constant=(*constant, *rare),
        warnings=(*notes, *warnings_of(manifest, constant, rare, train)),
    )


def open_sources(
    spec: Data, labels: Labels, data_root: Path, cv: Cv | None = None
) -> tuple[list[Source], Roles]:
    """Opens ``data.source`` and, if there is one, ``data.test_source``, read alike.

    Raises:
        DataError: as ``open_source`` and ``choose``, or a column is missing in the test source.
    """
    if not isinstance(spec.source, str) or not isinstance(spec.test_source, str | None):
        raise DataError("A source has to be made or exported before it can be prepared.")
    source = open_source(spec.source, spec, data_root)
    derived = source.derived
    roles = choose(source.schema, spec, labels, cv, source.index, derived=derived)
    if spec.test_source is None:
        return [source], roles
    known = known_types(source.schema, roles, derived)
    of_test = only(spec, roles.needed, where=True)
    test = open_source(spec.test_source, of_test, data_root, known)
    for name in roles.needed:
        if name not in test.schema:
            raise DataError(
                f"data.test_source {test.location} lacks column {name}.{meant(name, test.schema)}"
            )
    return [source, test], roles


def known_types(
    schema: Types, roles: Roles, derived: Sequence[Derived] = ()
) -> dict[str, pa.DataType]:
    """What the columns of another source are to be parsed as, to be read as those of a schema."""
    whole = [name for name in roles.categorical if kind_of(schema[name]) == "number"]
    wanted = [roles.label, *roles.features, *([roles.where] if roles.where else [])]
    computed, own = needed(wanted, derived)
    read = {name for column in computed for name in column.reads}
    return as_parsed({name: schema[name] for name in own}, whole, read)


def _check_test_types(test: Source, columns: Columns) -> None:
    """The columns of the test source can be turned into those of the training rows."""
    try:
        columns.check_types(test.schema)
    except DataError as error:
        raise DataError(f"data.test_source {test.location}: {error}") from error


def _clear(place: Store, *, shards: bool) -> None:
    """Removes what a finished or refused prepare does not keep."""
    with contextlib.suppress(OSError):
        place.at(WORK).remove_all()
    if not shards:
        return
    with contextlib.suppress(OSError):
        place.at("shards").remove_all()
        if isinstance(place, FolderStore):
            place.root.rmdir()


def _remove_strangers(place: Store, manifest: Manifest) -> None:
    """Removes shards of other settings, and temporary files of workers that were killed.

    A worker that was taken for dead may still write: its shard is the same, and its own to end.
    """
    known = {file.path for shard in manifest.shards for file in shard.files}
    for key in place.list("shards"):
        if key not in known:
            place.remove(key)
    if isinstance(place, FolderStore):
        for split_folder in (place.root / "shards").iterdir():
            remove_leftovers(split_folder)
