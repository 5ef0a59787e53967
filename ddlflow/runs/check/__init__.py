"""Everything that can be known before work starts; nothing is written.

``ddlflow check`` shows all findings at once. ``ddlflow run`` raises those that are errors before
it makes a folder, a run or a cluster.

finding.py   what a look at one thing says, and where in the files an error was made
inputs.py    what the pipeline says, held against the headers of its sources
models.py    user code, tried on made rows of the data's shape
search.py    what the search would try: names, ranges, every point of a grid
table.py     the source's size, and its label in the first rows
tables.py    sources that are tables of Spark's or Dask's
rows.py      what the counted rows mean; a small source is prepared to see
site.py      storage, tracking, Prefect, device, workers
"""

from collections.abc import Iterator, Sequence
from functools import partial

from ddlflow.data.roles import Roles
from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import SpecError
from ddlflow.runs.check import inputs, models, rows, search, site, table, tables
from ddlflow.runs.check.finding import Finding, placed
from ddlflow.spec.given import Given
from ddlflow.spec.load import Request, load, shown
from ddlflow.spec.pipeline import UserCode


def precheck(request: Request) -> None:
    """Raises what a run would meet in its input, before anything is written.

    Raises:
        SpecError: with all errors found, a line each.
        DataError: the rows of a small source are not such as the pipeline needs.
    """
    _raise(_of_input(request))
    manifest = rows.small(request)
    if manifest is not None:
        recheck(request, manifest)
        return
    found = placed(request, "source", "source", partial(table.table, request))
    _raise(found + placed(request, "storage", "storage", partial(table.shards, request)))


def recheck(request: Request, manifest: Manifest) -> list[str]:
    """Raises what a run would meet after its data is prepared; returns what to tell the user.

    Raises:
        SpecError: with all errors found, a line each.
    """
    found = [*_of_rows(request, manifest), *_of_models(request, models.counted(manifest))]
    _raise(found)
    return [one.text for one in found if one.level == "note" and one.what == "model"]


def check(pipeline: Given, on: Given = "local", changes: Sequence[str] = ()) -> list[Finding]:
    """All findings: both files, user code, source, label, storage, tracking, Prefect, workers."""
    try:
        request = load(pipeline, on, changes)
    except SpecError as error:
        return [Finding("files", "error", line) for line in str(error).splitlines()]
    files = f"{shown(request.pipeline_path)} and {shown(request.site_path)} are valid."
    findings = [Finding("files", "ok", files), *_of_input(request)]
    for subjects, look in (  # a subject that is wrong already is not looked at again
        (["source"], table.table),
        (["storage"], site.storage),
        (["source", "storage"], table.shards),
        (["tracking"], site.tracking),
        (["workers"], site.workers),
    ):
        if not any(found.level == "error" and found.what in subjects for found in findings):
            key = "engine.address" if subjects[-1] == "workers" else subjects[-1]
            findings += placed(request, subjects[-1], key, partial(look, request))
    if not errors(findings):
        findings += _of_small(request, findings)
    return findings + placed(request, "prefect", "prefect", site.prefect_answers)


def _of_small(request: Request, known: Sequence[Finding]) -> list[Finding]:
    """What preparing a small source shows beyond what is known."""
    found: list[Manifest] = []

    def look() -> Iterator[Finding]:
        manifest = rows.small(request)
        found.extend([] if manifest is None else [manifest])
        yield from ()

    findings = placed(request, "source", "data.source", look)
    for manifest in found:
        findings += _of_rows(request, manifest) + _of_models(request, models.counted(manifest))
    texts = {finding.text for finding in known}
    return [finding for finding in findings if finding.level != "ok" and finding.text not in texts]


def _raise(findings: Sequence[Finding]) -> None:
    found = [finding.text for finding in findings if finding.level == "error"]
    if found:
        raise SpecError("\n".join(found))


def errors(findings: Sequence[Finding]) -> int:
    """How many findings are errors."""
    return sum(finding.level == "error" for finding in findings)


def _of_input(request: Request) -> list[Finding]:
    """What a run needs of its input, by the files' headers and the first rows alone."""
    found = [
        *placed(request, "storage", "storage", partial(site.storage_writable, request)),
        *placed(request, "tracking", "tracking.uri", partial(site.tracking_uri, request)),
        *placed(request, "workers", "engine.use", partial(site.engine, request)),
        *placed(request, "workers", "device", partial(site.device, request)),
        *placed(request, "train", "train", partial(inputs.train, request)),
    ]
    of_search = placed(request, "search", "search", partial(search.settings, request))
    found += of_search
    roles: list[Roles] = []
    found += placed(request, "source", "data.source", partial(inputs.columns, request, roles))
    others = {"data.test_source": request.pipeline.data.test_source}
    others["infer.source"] = request.pipeline.infer.source
    for key, other in others.items():
        found += placed(request, "source", key, partial(tables.table, request, other, key))
    for chosen in roles:
        found += placed(
            request, "source", "data.test_source", partial(inputs.test_source, request, chosen)
        )
        found += placed(
            request, "source", "infer.source", partial(inputs.infer_source, request, chosen)
        )
        found += _of_models(
            request, models.expected(request, chosen), of_search=not errors(of_search)
        )
        named = partial(inputs.model_features, request, chosen)
        found += placed(request, "model", "model.features", named)
        found += placed(
            request, "report", "report.histogram", partial(inputs.report, request, chosen)
        )
    return found


def _of_models(request: Request, shape: models.Shape, *, of_search: bool = True) -> list[Finding]:
    """User code, and that of a search, tried with these numbers."""
    user_code = "model" if isinstance(request.pipeline.model, UserCode) else "train.objective"
    found = placed(request, "model", user_code, partial(models.model, request, shape))
    if of_search:
        found += placed(request, "search", "search", partial(search.models, request, shape))
    return found


def _of_rows(request: Request, manifest: Manifest) -> list[Finding]:
    weights = partial(rows.weights, request, manifest)
    return [
        *placed(request, "source", "data.source", partial(rows.counted, request, manifest)),
        *placed(request, "train", "train.class_weights", weights),
    ]
