"""Everything that can be known before work starts; nothing is written.

``ddlflow check`` shows all findings at once. ``ddlflow run`` raises those that are errors before
it makes a folder, a run or a cluster.

finding.py   what a look at one thing says, and where in the files an error was made
inputs.py    what the pipeline says, held against the headers of its sources
models.py    user code, tried on made rows of the data's shape
search.py    what the search would try: names, ranges, every point of a grid
table.py     the source's size, and its label in the first rows
rows.py      what the counted rows mean; a small source is prepared to see
site.py      storage, tracking, Prefect, device, workers
"""

from collections.abc import Iterator, Sequence
from functools import partial

from ddlflow.data.roles import Roles
from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import SpecError
from ddlflow.runs.check import inputs, models, rows, search, site, table
from ddlflow.runs.check.finding import Finding, placed
from ddlflow.spec.load import Plan, load, shown
from ddlflow.spec.pipeline import UserCode


def precheck(plan: Plan) -> None:
    """Raises what a run would meet in its input, before anything is written.

    Raises:
        SpecError: with all errors found, a line each.
        DataError: the rows of a small source are not such as the pipeline needs.
    """
    _raise(_of_input(plan))
    manifest = rows.small(plan)
    if manifest is not None:
        recheck(plan, manifest)
        return
    found = placed(plan, "source", "source", partial(table.table, plan))
    _raise(found + placed(plan, "storage", "storage", partial(table.shards, plan)))


def recheck(plan: Plan, manifest: Manifest) -> list[str]:
    """Raises what a run would meet after its data is prepared; returns what to tell the user.

    Raises:
        SpecError: with all errors found, a line each.
    """
    found = [*_of_rows(plan, manifest), *_of_models(plan, models.counted(manifest))]
    _raise(found)
    return [one.text for one in found if one.level == "note" and one.what == "model"]


def check(pipeline: str, on: str = "local", changes: Sequence[str] = ()) -> list[Finding]:
    """All findings: both files, user code, source, label, storage, tracking, Prefect, workers."""
    try:
        plan = load(pipeline, on, changes)
    except SpecError as error:
        return [Finding("files", "error", line) for line in str(error).splitlines()]
    files = f"{shown(plan.pipeline_path)} and {shown(plan.site_path)} are valid."
    findings = [Finding("files", "ok", files), *_of_input(plan)]
    for subjects, look in (  # a subject that is wrong already is not looked at again
        (["source"], table.table),
        (["storage"], site.storage),
        (["source", "storage"], table.shards),
        (["tracking"], site.tracking),
        (["workers"], site.workers),
    ):
        if not any(found.level == "error" and found.what in subjects for found in findings):
            findings += placed(plan, subjects[-1], subjects[-1], partial(look, plan))
    if not errors(findings):
        findings += _of_small(plan, findings)
    return findings + placed(plan, "prefect", "prefect", site.prefect_answers)


def _of_small(plan: Plan, known: Sequence[Finding]) -> list[Finding]:
    """What preparing a small source shows beyond what is known."""
    found: list[Manifest] = []

    def look() -> Iterator[Finding]:
        manifest = rows.small(plan)
        found.extend([] if manifest is None else [manifest])
        yield from ()

    findings = placed(plan, "source", "data.source", look)
    for manifest in found:
        findings += _of_rows(plan, manifest) + _of_models(plan, models.counted(manifest))
    texts = {finding.text for finding in known}
    return [finding for finding in findings if finding.level != "ok" and finding.text not in texts]


def _raise(findings: Sequence[Finding]) -> None:
    found = [finding.text for finding in findings if finding.level == "error"]
    if found:
        raise SpecError("\n".join(found))


def errors(findings: Sequence[Finding]) -> int:
    """How many findings are errors."""
    return sum(finding.level == "error" for finding in findings)


def _of_input(plan: Plan) -> list[Finding]:
    """What a run needs of its input, by the files' headers and the first rows alone."""
    found = [
        *placed(plan, "storage", "storage", partial(site.storage_writable, plan)),
        *placed(plan, "tracking", "tracking.uri", partial(site.tracking_uri, plan)),
        *placed(plan, "workers", "device", partial(site.device, plan)),
        *placed(plan, "train", "train", partial(inputs.train, plan)),
    ]
    of_search = placed(plan, "search", "search", partial(search.settings, plan))
    found += of_search
    roles: list[Roles] = []
    found += placed(plan, "source", "data.source", partial(inputs.columns, plan, roles))
    for chosen in roles:
        found += placed(
            plan, "source", "data.test_source", partial(inputs.test_source, plan, chosen)
        )
        found += placed(plan, "source", "infer.source", partial(inputs.infer_source, plan, chosen))
        found += _of_models(plan, models.expected(plan, chosen), of_search=not errors(of_search))
        named = partial(inputs.model_features, plan, chosen)
        found += placed(plan, "model", "model.features", named)
        found += placed(plan, "report", "report.histogram", partial(inputs.report, plan, chosen))
    return found


def _of_models(plan: Plan, shape: models.Shape, *, of_search: bool = True) -> list[Finding]:
    """User code, and that of a search, tried with these numbers."""
    user_code = "model" if isinstance(plan.pipeline.model, UserCode) else "train.objective"
    found = placed(plan, "model", user_code, partial(models.model, plan, shape))
    if of_search:
        found += placed(plan, "search", "search", partial(search.models, plan, shape))
    return found


def _of_rows(plan: Plan, manifest: Manifest) -> list[Finding]:
    weights = partial(rows.weights, plan, manifest)
    return [
        *placed(plan, "source", "data.source", partial(rows.counted, plan, manifest)),
        *placed(plan, "train", "train.class_weights", weights),
    ]
