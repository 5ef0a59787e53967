"""What the pipeline says, held against the headers of its sources."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ddlflow.data.prepare.prepare import known_types
from ddlflow.data.roles import Roles, choose
from ddlflow.data.sources.derive import WHERE, Derived, bind, only
from ddlflow.data.sources.source import Source
from ddlflow.runs.check import tables
from ddlflow.runs.check.finding import Finding, counted, open_named
from ddlflow.spec.cv import MAX_FOLDS
from ddlflow.spec.explain import nearest
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import LinearSection, Made


def train(request: Request) -> Iterator[Finding]:
    """Settings that only together are right or wrong."""
    from ddlflow.train.tasks.measures import measures_of

    spec, kind = request.pipeline.train, request.pipeline.labels
    names = measures_of(kind).names
    slices, batch_rows = spec.virtual_ranks, spec.batch_rows
    if slices != "auto" and batch_rows != "auto" and slices > batch_rows:
        yield Finding(
            "train",
            "error",
            f"train.virtual_ranks is {slices}, more than the {batch_rows} rows of "
            "a global batch. Set at most train.batch_rows.",
        )
    if spec.early_stopping and spec.early_stopping.metric not in names:
        name = spec.early_stopping.metric
        yield Finding(
            "train",
            "error",
            f"train.early_stopping.metric is {name!r}, which objective {kind} does not have."
            f"{nearest(name, names)} It has: {', '.join(names)}.",
        )
    split = request.pipeline.data.split
    if spec.early_stopping and split.column is None and split.validation == 0:
        text = "train.early_stopping needs validation rows. Set data.split.validation above 0."
        yield Finding("train", "error", text)


def columns(request: Request, roles: list[Roles]) -> Iterator[Finding]:
    """Finds what each column is for, into ``roles``."""
    spec = request.pipeline.data
    if isinstance(spec.source, Made):
        schema, derived = _schema_of(spec.source), bind(_schema_of(spec.source), spec)
        schema |= {column.name: column.type for column in derived}
        roles.append(
            choose(schema, spec, request.pipeline.labels, request.pipeline.cv, derived=derived)
        )
        text = f"{spec.source.rows:,} rows of {spec.source.use} will be made."
        yield Finding("source", "ok", text)
    elif not isinstance(spec.source, str):
        yield from tables.table(request, spec.source, "data.source")
        return
    else:
        found = open_named(request, spec.source, "data.source")
        cv = request.pipeline.cv
        derived = found.derived
        labels = request.pipeline.labels
        roles.append(choose(found.schema, spec, labels, cv, found.index, derived=derived))
        if cv is not None and (cv.folds or 0) > (found.rows or MAX_FOLDS):
            text = (
                f"cv.folds is {cv.folds}, and {spec.source} has {counted(found.rows or 0, 'row')}"
            )
            yield Finding("source", "error", f"{text}. Set cv.folds lower.")
    yield from _computed(roles[0], derived)


def _computed(roles: Roles, derived: Sequence[Derived]) -> Iterator[Finding]:
    """What is computed, and what that means for the features."""
    shown = [f"{column.name} ({column.type})" for column in derived if column.name != WHERE]
    if shown:
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        yield Finding("source", "ok", f"Computed: {', '.join(shown[:10])}{more}.")
    for note in roles.notes:
        yield Finding("source", "note", note)


def test_source(request: Request, roles: Roles) -> Iterator[Finding]:
    location = request.pipeline.data.test_source
    if isinstance(location, str):
        wanted = roles.needed
        spec = only(request.pipeline.data, wanted, where=True)
        found = open_named(request, location, "data.test_source", spec, _known(request, roles))
        yield from _lacking(found, wanted, "data.test_source")


def infer_source(request: Request, roles: Roles) -> Iterator[Finding]:
    spec = request.pipeline
    if not spec.infer.source and not spec.infer.keys:
        return  # a source that was looked at
    location = spec.infer.source or spec.data.test_source or spec.data.source
    if isinstance(location, Made):
        schema = list(_schema_of(location))
    elif not isinstance(location, str):
        return  # its columns are not known
    else:
        key = "infer.source" if spec.infer.source else "data.source"
        known = _known(request, roles) if location != spec.data.source else None
        data = only(spec.data, roles.features, where=False)
        data = data.model_copy(update={"format": "auto"} if spec.infer.source else {})
        found = open_named(request, location, key, data, known)
        schema = list(found.schema)
        if spec.infer.source:
            yield from _lacking(found, roles.features, key)
    for key in spec.infer.keys:
        if key not in schema:
            near = nearest(key, schema) or f" Its columns: {', '.join(schema[:20])}."
            where = "the source" if isinstance(location, Made) else location
            yield Finding(
                "source", "error", f"infer.keys names column {key}, which {where} lacks.{near}"
            )


def _known(request: Request, roles: Roles) -> dict[str, pa.DataType]:
    """What the columns of ``data.source`` are, as which those of other sources are read."""
    source = request.pipeline.data.source
    if isinstance(source, Made):
        schema = _schema_of(source)
        return known_types(schema, roles, bind(schema, request.pipeline.data))
    assert isinstance(source, str)  # of a table there are no roles to ask with
    found = open_named(request, source, "data.source")
    return known_types(found.schema, roles, found.derived)


def _schema_of(source: Made) -> dict[str, pa.DataType]:
    from ddlflow.data.samples.generators import GENERATORS

    schema = GENERATORS[source.use].SCHEMA
    return dict(zip(schema.names, schema.types, strict=True))


def _lacking(found: Source, names: Sequence[str], key: str) -> Iterator[Finding]:
    lacking = [name for name in names if name not in found.schema]
    if lacking:
        more = ", ..." if len(lacking) > 5 else ""
        text = f"{key} {found.location} lacks the columns {', '.join(lacking[:5])}{more}"
        yield Finding("source", "error", f"{text}. Add them there, or name another source.")


def model_features(request: Request, roles: Roles) -> Iterator[Finding]:
    """The features that a model uses, or a search adds to it, are features of the data."""
    model, search = request.pipeline.model, request.pipeline.search
    asked = {"model.features": model.features} if isinstance(model, LinearSection) else {}
    if search is not None and "model.features" in search.space:
        values = search.space["model.features"].values or []
        names = [n for value in values for n in (value if isinstance(value, list) else [value])]
        asked["search.space.model.features"] = list(dict.fromkeys(map(str, names)))
    for key, listed in asked.items():
        for name in listed or ():
            if name not in roles.features:
                known = f" These are: {', '.join(roles.features[:20])}."
                near = nearest(name, roles.features) or known
                yield Finding("model", "error", f"{key} names {name}, which is no feature.{near}")


def report(request: Request, roles: Roles) -> Iterator[Finding]:
    feature = request.pipeline.report.histogram
    if feature is not None and feature not in roles.numeric:
        numeric = ", ".join(roles.numeric[:20])
        near = nearest(feature, roles.numeric) or f" These are: {numeric}."
        text = f"report.histogram is {feature!r}, which is no numeric feature.{near}"
        yield Finding("report", "error", text)
