"""Everything that can be known before work starts; nothing is written.

``ddlflow check`` shows all findings at once. ``ddlflow run`` raises those that are errors before
it makes a folder, a run or a cluster.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddlflow.data.columns import label_keys
from ddlflow.data.roles import Roles, choose
from ddlflow.data.source import Source, open_source, ranges, read
from ddlflow.engines.resources import resources
from ddlflow.errors import DdlflowError, SpecError
from ddlflow.session import count_gpus, storage_of
from ddlflow.spec import code
from ddlflow.spec.explain import nearest
from ddlflow.spec.load import Plan
from ddlflow.spec.pipeline import Collider, UserCode, UserObjective

Level = Literal["ok", "note", "error"]
ROW_BYTES_KEPT = 4  # of each number: shards are float32


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the subject: source, label, storage, ...
        level: ok, note (the run works; read it) or error (it would not).
        text: a sentence: what was found and, unless all is well, what to do.
    """

    what: str
    level: Level
    text: str


def precheck(plan: Plan) -> None:
    """Raises the first error that a run would meet for its input, before anything is written.

    Raises:
        SpecError, DataError: with all errors found, a line each.
    """
    errors = [finding for finding in _input_findings(plan, reads=False) if finding.level == "error"]
    if errors:
        raise SpecError("\n".join(finding.text for finding in errors))


def check(plan: Plan) -> list[Finding]:
    """All findings: both files, user code, source, label, storage, tracking, Prefect, workers."""
    return [
        *_input_findings(plan, reads=True),
        *_guarded("storage", lambda: _storage(plan)),
        *_guarded("tracking", lambda: _tracking(plan)),
        *_guarded("prefect", _prefect),
        *_guarded("workers", lambda: _workers(plan)),
    ]


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one look; what it raises becomes one."""
    try:
        yield from look()
    except DdlflowError as error:
        yield Finding(what, "error", str(error))


def _input_findings(plan: Plan, *, reads: bool) -> Iterator[Finding]:
    yield Finding("files", "ok", f"{plan.pipeline_path} and {plan.site_path} are valid.")
    yield from _guarded("storage", lambda: _storage_writable(plan))
    yield from _guarded("train", lambda: _train(plan))
    roles: list[Roles] = []
    yield from _guarded("source", lambda: _source(plan, roles, reads=reads))
    if roles:
        yield from _guarded("model", lambda: _model(plan, roles[0]))
        yield from _guarded("report", lambda: _report(plan, roles[0]))


# ---- what the pipeline says ------------------------------------------------------------------


def _train(plan: Plan) -> Iterator[Finding]:
    """Settings that only together are right or wrong."""
    from ddlflow.train.scores import metric_names

    spec, kind = plan.pipeline.train, plan.pipeline.labels
    if spec.virtual_ranks != "auto" and spec.virtual_ranks > spec.batch_rows:
        yield Finding(
            "train",
            "error",
            f"train.virtual_ranks is {spec.virtual_ranks}, more than the {spec.batch_rows} rows of "
            "a global batch. Set at most train.batch_rows.",
        )
    if spec.early_stopping and spec.early_stopping.metric not in metric_names(kind):
        name = spec.early_stopping.metric
        yield Finding(
            "train",
            "error",
            f"train.early_stopping.metric is {name!r}, which objective {kind} does not have."
            f"{nearest(name, metric_names(kind))} It has: {', '.join(metric_names(kind))}.",
        )
    split = plan.pipeline.data.split
    if spec.early_stopping and split.column is None and split.validation == 0:
        text = "train.early_stopping needs validation rows. Set data.split.validation."
        yield Finding("train", "error", text)


def _source(plan: Plan, roles: list[Roles], *, reads: bool) -> Iterator[Finding]:
    spec = plan.pipeline.data
    if isinstance(spec.source, Collider):
        yield Finding("source", "ok", f"{spec.source.rows:,} collider events will be made.")
        from ddlflow.data.collider import events

        schema = dict(zip((made := events(1)).schema.names, made.schema.types, strict=True))
        roles.append(choose(schema, spec, plan.pipeline.labels))
        return
    root = Path(plan.site.data_root).expanduser().absolute()
    found = open_source(spec.source, spec, root)
    chosen = choose(found.schema, spec, plan.pipeline.labels)
    for location in (spec.test_source, plan.pipeline.infer.source):
        if location is not None:
            other = open_source(location, spec, root)
            lacking = [name for name in chosen.features if name not in other.schema]
            if lacking:
                text = f"{location} lacks the columns {', '.join(lacking[:5])}. Add them there."
                yield Finding("source", "error", text)
    inferred = plan.pipeline.infer.source or spec.test_source or spec.source
    for key in plan.pipeline.infer.keys:
        schema = open_source(inferred, spec, root).schema
        if key not in schema:
            text = f"infer.keys names {key}, which {inferred} lacks.{nearest(key, schema)}"
            yield Finding("source", "error", text)
    roles.append(chosen)
    if not reads:
        return
    parts = ranges(found)
    rows = f"{found.rows:,} rows" if found.rows is not None else "rows not counted yet"
    yield Finding(
        "source",
        "ok",
        f"{found.address}: {found.dialect.format}, {len(found.files)} files, {rows}, {len(parts)} "
        f"ranges, {len(chosen.numeric)} numeric and {len(chosen.categorical)} categorical "
        "features.",
    )
    workers = resources(plan.site.engine, gpus=0).slots
    if len(parts) < workers:
        yield Finding(
            "source",
            "note",
            f"{len(parts)} ranges for {workers} workers: some idle while data is prepared. Write "
            "the source with smaller row groups (Parquet) or uncompressed (CSV).",
        )
    yield from _label(plan, found, chosen)


def _label(plan: Plan, found: Source, roles: Roles) -> Iterator[Finding]:
    """The class balance (or span) in the first piece: the whole is counted by prepare."""
    import pyarrow.compute as pc

    first = next(iter(read(found, ranges(found)[0], [roles.label])))
    column = first.column(0)
    if plan.pipeline.labels == "regression":
        span = pc.min_max(column).as_py()
        text = f"{roles.label} spans {span['min']:.6g} to {span['max']:.6g} in the first rows."
        yield Finding("label", "ok", text)
        return
    counts = pc.value_counts(label_keys(column)).to_pylist()
    counts.sort(key=lambda entry: -entry["counts"])
    shown = ", ".join(f"{e['values']}: {e['counts'] / first.num_rows:.1%}" for e in counts[:8])
    many = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    rows = f"{first.num_rows:,} rows"
    text = f"{roles.label} has {len(counts)} classes in the first {rows}: {shown}{many}."
    if len(counts) < 2:
        text += " A class needs a counterpart: is it sorted by the label, or the wrong column?"
    elif plan.pipeline.labels == "binary" and len(counts) > 2:
        yield Finding("label", "error", f"{text} Set train.objective: multiclass.")
        return
    yield Finding("label", "ok" if len(counts) > 1 else "note", text)


def _model(plan: Plan, roles: Roles) -> Iterator[Finding]:
    """User code is found, bound to its arguments and tried on a few made rows."""
    named = code.names(plan.pipeline)
    if not named:
        return
    from ddlflow.models import build
    from ddlflow.train.objectives import objective_for
    from ddlflow.train.probe import check_model

    spec, pipeline = plan.pipeline.model, plan.pipeline
    loss = pipeline.train.objective
    user_loss = None
    if isinstance(loss, UserObjective):
        user_loss = code.resolve(loss.use, plan.code_folder, "train.objective.use")
    objective = objective_for(loss, user_loss)
    # The classes are counted by prepare; three stand for them here.
    classes = 3 if pipeline.labels == "multiclass" else 2
    sizes = [5] * len(roles.categorical)
    user_class = None
    if isinstance(spec, UserCode):
        user_class = code.resolve(spec.use, plan.code_folder)
    net = build(
        spec,
        num_features=len(roles.numeric),
        category_sizes=sizes,
        num_outputs=objective.num_outputs(classes),
        user_class=user_class,
    )
    unreached = check_model(
        net,
        objective,
        num_features=len(roles.numeric),
        category_sizes=sizes,
        num_classes=classes,
    )
    size = sum(parameter.numel() for parameter in net.parameters())
    yield Finding("model", "ok", f"{', '.join(named.values())} works; {size:,} parameters.")
    if unreached:
        text = f"no gradient reaches {', '.join(unreached[:5])}: these stay as they start."
        yield Finding("model", "note", text)


def _report(plan: Plan, roles: Roles) -> Iterator[Finding]:
    feature = plan.pipeline.report.histogram
    if feature is not None and feature not in roles.numeric:
        yield Finding(
            "report",
            "error",
            f"report.histogram is {feature!r}, which is no numeric feature."
            f"{nearest(feature, roles.numeric)}",
        )


# ---- what the site has -----------------------------------------------------------------------


def _storage_writable(plan: Plan) -> Iterator[Finding]:
    folder = storage_of(plan)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        text = f"storage is {folder}, but {existing} is a file. Name a folder."
        yield Finding("storage", "error", text)
    elif not os.access(existing, os.W_OK | os.X_OK) or _read_only(existing):
        yield Finding(
            "storage",
            "error",
            f"storage {folder} cannot be written: {existing} is read-only for you. Set storage in "
            f"{plan.site_path} to a folder that you may write.",
        )


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _storage(plan: Plan) -> Iterator[Finding]:
    folder = storage_of(plan)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    yield Finding("storage", "ok", f"{folder}: {free / 1e9:.0f} GB free.")
    spec = plan.pipeline.data
    if isinstance(spec.source, str):
        root = Path(plan.site.data_root).expanduser().absolute()
        found = open_source(spec.source, spec, root)
        if found.rows is not None:
            needed = found.rows * len(found.schema) * ROW_BYTES_KEPT
            if needed > free:
                yield Finding(
                    "storage",
                    "error",
                    f"The shards need about {needed / 1e9:.1f} GB, more than is free. Free some, "
                    f"or set storage in {plan.site_path}.",
                )


def _tracking(plan: Plan) -> Iterator[Finding]:
    from ddlflow.tracking.store import redacted

    uri = plan.site.tracking.uri
    if not uri.startswith(("http://", "https://")):
        yield Finding("tracking", "ok", f"{redacted(uri)}, embedded.")
        return
    answered = _answers(f"{uri.rstrip('/')}/health")
    text = f"{redacted(uri)} answers."
    if not answered:
        text = (
            f"{redacted(uri)} does not answer. The run goes on without it and sends its metrics "
            "later; start the server, or set tracking.uri."
        )
    yield Finding("tracking", "ok" if answered else "note", text)


def _prefect() -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        text = "PREFECT_API_URL is not set: a server of its own serves each run."
        yield Finding("prefect", "ok", text)
    elif _answers(f"{url.rstrip('/')}/health"):
        yield Finding("prefect", "ok", f"{url} answers.")
    else:
        text = f"{url} (PREFECT_API_URL) does not answer. Start that server, or unset the variable."
        yield Finding("prefect", "error", text)


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5).status_code < 500
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _workers(plan: Plan) -> Iterator[Finding]:
    import psutil

    engine = plan.site.engine
    gpus = count_gpus(plan.site.device)
    if engine.address is not None:
        from ddlflow.engines import open_engine

        with open_engine(plan.site, slots=1, threads=1) as opened:
            yield Finding("workers", "ok", f"{opened.describe()}.")
        return
    found = resources(engine, gpus=gpus)
    memory = psutil.virtual_memory().available
    text = f"{found.slots} workers, {found.threads} threads a rank"
    yield Finding("workers", "ok", f"{text} ({found.why}); {memory / 1e9:.0f} GB memory free.")
    if memory / found.slots < 1e9:
        text = "Less than 1 GB of free memory a worker. Set engine.workers lower."
        yield Finding("workers", "note", text)


def errors(findings: Sequence[Finding]) -> int:
    """How many findings are errors."""
    return sum(finding.level == "error" for finding in findings)
