"""The source's size, and its label in the first rows."""

import shutil
from collections.abc import Iterator

from ddlflow.data.columns import label_keys, missing_mask
from ddlflow.data.roles import Roles, choose
from ddlflow.data.sources.source import Source, ranges, read, tensors_of
from ddlflow.engines.resources import resources
from ddlflow.runs.check.finding import Finding, Level, counted, open_named
from ddlflow.runs.check.site import existing
from ddlflow.spec.load import Request
from ddlflow.store.site_storage import storage_of
from ddlflow.store.store import is_url

ROW_BYTES_KEPT = 4  # of each number: shards are float32


def table(request: Request) -> Iterator[Finding]:
    """The size of the source, and its label in the first rows."""
    spec = request.pipeline.data
    if not isinstance(spec.source, str) or is_url(request.site.storage):
        return
    found = open_named(request, spec.source, "data.source")
    pipeline, derived = request.pipeline, found.derived
    chosen = choose(found.schema, spec, pipeline.labels, pipeline.cv, found.index, derived=derived)
    parts = ranges(found)
    rows = counted(found.rows, "row") if found.rows is not None else "rows not counted yet"
    yield Finding(
        "source",
        "ok",
        f"{found.address}: {found.summary}, {rows}, "
        f"{counted(len(parts), 'range')}; {len(chosen.numeric)} numeric and "
        f"{len(chosen.categorical)} categorical features{_tensors(chosen)}.",
    )
    for note in found.notes:
        yield Finding("source", "note", note)
    engine = request.site.engine
    # Workers that are there already are not asked for their number here.
    is_known = engine.address is None or engine.workers != "auto"
    workers = resources(engine, gpus=0).slots if is_known else 0
    if len(parts) < workers:
        yield Finding(
            "source",
            "note",
            f"{counted(len(parts), 'range')} for {workers} workers: some idle while data is "
            "prepared. Write the source with smaller row groups (Parquet) or uncompressed (CSV).",
        )
    if parts:
        yield from _label(request, found, chosen)


def _tensors(roles: Roles) -> str:
    shown = ", ".join(field.shown for field in roles.tensors[:10])
    more = ", ..." if len(roles.tensors) > 10 else ""
    return f" and {counted(len(roles.tensors), 'tensor')}: {shown}{more}" if roles.tensors else ""


def shards(request: Request) -> Iterator[Finding]:
    """Whether the storage has room for the source as shards."""
    spec = request.pipeline.data
    if not isinstance(spec.source, str) or is_url(request.site.storage):
        return
    found = open_named(request, spec.source, "data.source")
    free = shutil.disk_usage(existing(storage_of(request.site))).free
    tensors = [field for field in tensors_of(found.schema) if not field.is_sequence]
    a_row = len(found.schema) * ROW_BYTES_KEPT + sum(field.value_bytes for field in tensors)
    needed = (found.rows or 0) * a_row
    if needed > free:
        text = f"The shards need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
        advice = "Free some, or set storage in the site file."
        yield Finding("storage", "error", f"{text} {advice}")


def _class(value: object) -> object:
    """A class as prepare has it: CSV's numbers are floats, and 1.0 is class 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _label(request: Request, found: Source, roles: Roles) -> Iterator[Finding]:
    """The class balance (or span) in the first piece: the whole is counted by prepare."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = ranges(found)
    names = [roles.label] if roles.where is None else [roles.label, roles.where]
    pieces = read(found, parts[0], names)
    piece = next(pieces)
    whole = len(parts) == 1 and next(pieces, None) is None
    rows = (
        counted(piece.num_rows, "row") if whole else f"the first {counted(piece.num_rows, 'row')}"
    )
    if roles.where is not None:
        piece = piece.filter(piece.column(roles.where))
        rows = f"{piece.num_rows:,} of {rows} in which data.where holds"
    column = piece.column(roles.label)
    missing = missing_mask(column)
    if missing.any() and request.pipeline.data.label_missing != "drop":
        text = f"{roles.label} is missing in {int(missing.sum()):,} of {rows}. "
        advice = "Set data.label_missing: drop to leave these rows out, or correct the source."
        yield Finding("label", "error", f"{text}{advice}")
    column = column.filter(pa.array(~missing))
    alone: Level = "error" if whole else "note"
    if not len(column):
        text = f"No label in {rows}: there is nothing to learn from."
        yield Finding("label", alone, f"{text} Correct data.where or data.label.")
        return
    if request.pipeline.labels == "regression":
        span = pc.min_max(column).as_py()
        if span["min"] == span["max"]:
            text = f"{roles.label} is {span['min']} in all of {rows}: there is nothing to learn."
            yield Finding("label", alone, f"{text} Correct data.label or data.source.")
        else:
            text = f"{roles.label} spans {span['min']:.6g} to {span['max']:.6g} in {rows}."
            yield Finding("label", "ok", text)
        return
    counts = pc.value_counts(label_keys(column)).to_pylist()
    counts.sort(key=lambda entry: -entry["counts"])
    listed = ", ".join(
        f"{_class(e['values'])}: {e['counts'] / len(column):.1%}" for e in counts[:8]
    )
    many = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    text = f"{roles.label} has {counted(len(counts), 'class')} in {rows}: {listed}{many}."
    if len(counts) < 2:
        text += " Two are needed: is this the right column, and are the rows sorted by it?"
        yield Finding("label", alone, text)
    elif request.pipeline.labels == "binary" and len(counts) > 2:
        text += " Objective binary needs two. Set train.objective to multiclass or regression."
        yield Finding("label", "error", text)
    else:
        yield Finding("label", "ok", text)
