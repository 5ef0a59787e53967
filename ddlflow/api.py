"""What a script or a notebook calls; the command line calls the same.

Each function imports what it needs when it is called: a command that lists files waits for no
PyTorch, no MLflow and no Prefect.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddlflow.errors import SpecError
from ddlflow.flow.command import (
    end_lost,
    prefect_findings,
    prefect_page,
    prefect_place,
    prefect_server,
    ready,
    run_flow,
)
from ddlflow.flow.load import load_flow
from ddlflow.flow.server import named_by_the_user
from ddlflow.redact import hidden, hidden_values
from ddlflow.runs.apply import load_model, predict
from ddlflow.spec.given import Changes, Given, as_changes, as_source, called, plain
from ddlflow.spec.load import Request, load, load_site, request_of_site
from ddlflow.spec.pipeline import MadeName
from ddlflow.spec.site import Site
from ddlflow.store.site_storage import storage_of, store_of_site
from ddlflow.store.store import Store, is_url

if TYPE_CHECKING:
    from ddlflow.history.audit import Audit
    from ddlflow.history.compare import Comparison
    from ddlflow.history.reproduce import Verdict
    from ddlflow.runs.check.finding import Finding
    from ddlflow.runs.results import RunSummary as RunSummary  # noqa: PLC0414 - of the api as well
    from ddlflow.runs.results import SearchSummary as SearchSummary  # noqa: PLC0414 - of the api as well
    from ddlflow.runs.results import SweepSummary as SweepSummary  # noqa: PLC0414 - of the api as well
    from ddlflow.tracking.servers import Pages

__all__ = [
    "MadeName",
    "as_changes",
    "audit",
    "check",
    "compare",
    "doctor",
    "fetch_higgs",
    "init",
    "load_model",
    "make",
    "predict",
    "reproduce",
    "run",
    "run_pipeline",
    "run_sweep",
    "site",
    "summary_json",
    "ui",
]


def run(
    pipeline: Given,
    on: Given = "local",
    set: Changes = (),
    *,
    source: Any = None,
    spark: Any = None,
    fresh: bool = False,
    only: Literal["cross_validate", "search"] | None = None,
) -> dict[str, Any]:
    """Runs a pipeline on a site and returns what ``ddlflow run --json`` prints.

    Args:
        pipeline: a name in pipelines/, a YAML file, a folder with pipeline.yaml, or the values of
            such a file as a dict, whose sources may be tables.
        on: a name in conf/, a YAML file, or the values of such a file as a dict.
        set: values on top of the files: ``{"train.epochs": 3}`` or ``["train.epochs=3"]``.
        source: instead of data.source: a pandas, Polars or Arrow table (it is kept once under the
            storage; the index of a pandas frame is no column), a file, glob, folder or URL, or a
            table of the site's engine: ``{"spark": "SELECT ...", "key": ["id"]}``.
        fresh: do again what was done before.
        only: this stage alone, as ``ddlflow search`` and ``ddlflow cross-validate`` do.

    Returns:
        run_id, stages (name, seconds, cached), metrics, rows_per_s, model_digest, model_uri,
        predictions, report, page; search and cross_validation where the pipeline asks for them.

    Raises:
        SpecError, DataError: the input is wrong; nothing was written.
        DdlflowError: the run failed; the same call goes on from what was finished.
    """
    from ddlflow.runs.given_session import changes_for, using

    of_site = [] if spark is None else changes_for(spark)
    with using(spark):
        result = _run(
            pipeline, on, [*as_changes(set), *of_site], source=source, fresh=fresh, only=only
        )
    return summary_json(result)


def run_pipeline(
    pipeline: Given, on: Given = "local", set: Changes = (), *, fresh: bool = False
) -> "RunSummary":
    """As `run`, which gives the same as JSON values."""
    from ddlflow.runs.results import RunSummary

    result = _run(pipeline, on, set, source=None, fresh=fresh, only=None)
    assert isinstance(result, RunSummary)
    return result


def run_sweep(
    only: Literal["cross_validate", "search"],
    pipeline: Given,
    on: Given = "local",
    set: Changes = (),
    *,
    fresh: bool = False,
) -> "SweepSummary":
    """As `run` with ``only``, which gives the same as JSON values."""
    from ddlflow.runs.results import SweepSummary

    result = _run(pipeline, on, set, source=None, fresh=fresh, only=only)
    assert isinstance(result, SweepSummary)
    return result


def _run(
    pipeline: Given,
    on: Given,
    set: Changes,
    *,
    source: Any,
    fresh: bool,
    only: Literal["cross_validate", "search"] | None,
) -> "RunSummary | SweepSummary":
    from ddlflow.data.sources.frames import is_frame
    from ddlflow.runs.check import precheck
    from ddlflow.runs.check.search import check_section
    from ddlflow.runs.check.site import prefect_answers
    from ddlflow.runs.tables import keeping, placed

    changes = as_changes(set)

    def given(place: Callable[[Any], str]) -> tuple[Given, list[str]]:
        """The pipeline and the changes, with tables replaced by their places."""
        values = plain(placed(pipeline, place)) if isinstance(pipeline, Mapping) else pipeline
        if source is None:
            return values, changes
        where = place(source) if is_frame(source) else as_source(source)
        return values, [*changes, f"data.source={json.dumps(where)}"]

    plain_site = plain(on) if isinstance(on, Mapping) else on
    first, wanted = given(lambda _: "a table")
    request = load(first, plain_site, wanted)  # all that is wrong is said before a table is written
    check_section(request, only)
    with keeping(*_storage(request)) as keep:
        values, wanted = given(keep)
        request = load(values, plain_site, wanted)
        precheck(request)  # wrong input is said before Prefect takes its seconds
        for finding in prefect_answers():
            if finding.level == "error":
                raise SpecError(finding.text)
        return _run_flow(request, values, plain_site, wanted, fresh=fresh, only=only)


def _run_flow(
    request: Request, pipeline: Given, on: Given, changes: list[str], **more: Any
) -> "RunSummary | SweepSummary":
    """Runs the project's flow as a command that others know of."""
    from ddlflow.report.screen import Screen
    from ddlflow.runs.doctor import mend
    from ddlflow.runs.running import running

    screen = Screen()
    storage = storage_of(request.site)
    what = f"run {called(pipeline)} on {called(on)}"
    with prefect_server() as server:
        screen.say(f"prefect: {server.words if server else named_by_the_user()}")
        flow = load_flow()  # takes seconds, in which a new server starts
        with running(storage, what, prefect_place()) as command:
            for finding in mend(storage, end_lost):
                screen.say(f"{finding.what}: {finding.text}")
            with ready(server):
                return run_flow(
                    flow,
                    command.name,
                    # Prefect keeps what it is given.
                    pipeline=hidden_values(pipeline)
                    if isinstance(pipeline, Mapping)
                    else str(pipeline),
                    on=hidden_values(on) if isinstance(on, Mapping) else str(on),
                    changes=[hidden(change) for change in changes],
                    **more,
                )


def _storage(request: Request) -> tuple[Path, Store | None]:
    """This machine's folder of the site's storage, and the storage if it is an object store.

    Raises:
        SpecError: a URL that names no object store, with the place where that is said.
    """
    try:
        store = store_of_site(request.site)
        return storage_of(request.site), store if is_url(store.location) else None
    except SpecError as error:
        raise SpecError(f"{request.place('storage')}: {error}") from None


def summary_json(result: "RunSummary | SweepSummary") -> dict[str, Any]:
    """What ``--json`` prints of a run."""
    from ddlflow.runs.result_json import to_json

    return to_json(result)


def site(on: Given = "local", set: Changes = ()) -> Site:
    """A site by name or path."""
    return load_site(on, as_changes(set))


def check(pipeline: Given, on: Given = "local", set: Changes = ()) -> "list[Finding]":
    """Looks at everything that can be known before a run; writes nothing."""
    from ddlflow.runs.check import check as look

    return look(pipeline, on, as_changes(set))


def doctor(on: Given = "local", set: Changes = ()) -> "list[Finding]":
    """Ends what commands that were killed left in Prefect, in MLflow and on the storage."""
    from ddlflow.runs.doctor import doctor as look

    return [*look(on, as_changes(set), end_lost=end_lost), *prefect_findings()]


def reproduce(
    run_id: str,
    *,
    on: str = "local",
    set: Changes = (),
    workers: int | None = None,
    trust_code: bool = False,
) -> "Verdict":
    """Trains a recorded run again; see ``ddlflow.history.reproduce.reproduce``."""
    from ddlflow.history.reproduce import reproduce as train_again

    changes = as_changes(set)
    return train_again(run_id, on=on, changes=changes, workers=workers, trust_code=trust_code)


def audit(run_id: str, *, on: str = "local") -> "Audit":
    """Proves from a recorded run's ledgers that each row came once an epoch."""
    from ddlflow.history.audit import audit as prove

    return prove(run_id, on=on)


def compare(run_ids: Sequence[str], *, on: str = "local") -> "Comparison":
    """What differs between recorded runs."""
    from ddlflow.history.compare import compare as compare_runs

    return compare_runs(run_ids, on=on)


def init(folder: str | Path) -> list[Path]:
    """Lays out a project of the user's own in a new or empty folder; returns its files."""
    from ddlflow.runs.project import lay_out

    return lay_out(Path(folder))


def ui(on: Given = "local", set: Changes = (), *, say: "Callable[[Pages], None]") -> None:
    """Serves the pages of MLflow and Prefect until Ctrl-C; ``say`` is told where they are."""
    from ddlflow.tracking.servers import ui as serve

    uri = site(on, set).tracking.uri
    with prefect_server() as server:  # it starts while MLflow's does
        serve(uri, prefect=lambda: prefect_page(server), say=say)


def make(
    use: MadeName,
    rows: int,
    *,
    out: str | Path,
    seed: int = 1,
    on: Given = "local",
    set: Changes = (),
) -> dict[str, Any]:
    """Makes a source's rows as Parquet files under ``out``; the same bytes on any workers."""
    from ddlflow.data.samples.generators import plan, write_part
    from ddlflow.report.screen import Screen
    from ddlflow.runs.session import Session

    parts = plan(use, rows, Path(out).absolute(), seed)
    with Session(request_of_site(on, as_changes(set)), Screen()) as session:
        written = list(session.map_over(write_part, parts, use))
    return {"rows": rows, "files": len(written), "out": str(out)}


def fetch_higgs(out: str | Path) -> list[Path]:
    """Fetches UCI's HIGGS.csv.gz, checks it, and turns it into ``out/train`` and ``out/test``."""
    from ddlflow.runs.samples import fetch_higgs as fetch_to

    return fetch_to(Path(out))
