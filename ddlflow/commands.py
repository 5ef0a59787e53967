"""What a script or a notebook calls; the command line calls the same."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ddlflow.errors import InputError, SpecError
from ddlflow.flow import load_flow
from ddlflow.redact import hidden
from ddlflow.spec.load import Plan, find, load, load_site, shown
from ddlflow.spec.pipeline import MadeName
from ddlflow.spec.site import Site

Changes = Mapping[str, Any] | Sequence[str]


def run(
    pipeline: str,
    on: str = "local",
    set: Changes = (),
    *,
    fresh: bool = False,
    only: Literal["cross_validate", "search"] | None = None,
) -> dict[str, Any]:
    """Runs a pipeline on a site and returns what ``ddlflow run --json`` prints.

    Args:
        pipeline: a name in pipelines/, a YAML file, or a folder with pipeline.yaml.
        on: a name in conf/, or a YAML file.
        set: values on top of the files: ``{"train.epochs": 3}`` or ``["train.epochs=3"]``.
        fresh: do again what was done before.
        only: this stage alone, as ``ddlflow search`` and ``ddlflow cross-validate`` do.

    Returns:
        run_id, stages (name, seconds, cached), metrics, rows_per_s, model_digest, model_uri,
        predictions, report, page; search and cross_validation where the pipeline asks for them.

    Raises:
        SpecError, DataError: the input is wrong; nothing was written.
        DdlflowError: the run failed; the same call goes on from what was finished.
    """
    from ddlflow.check import precheck
    from ddlflow.check.site import prefect_answers
    from ddlflow.doctor import mend
    from ddlflow.report.screen import Screen
    from ddlflow.running import running
    from ddlflow.storage import remove_empty, storage_of

    changes = as_changes(set)
    plan = load(pipeline, on, changes)
    _check_asked(plan, only)
    precheck(plan)  # wrong input is said before Prefect takes its seconds
    for finding in prefect_answers():
        if finding.level == "error":
            raise SpecError(finding.text)
    screen = Screen()
    server = os.environ.get("PREFECT_API_URL")
    starts = "starts a server for this run (PREFECT_API_URL names one that runs already)"
    screen.say(f"prefect: {server or starts}")
    flow = load_flow()
    storage = storage_of(plan.site)
    is_new = not storage.exists()
    try:
        with running(storage, f"run {pipeline} on {on}", flow.where()) as command:
            for finding in mend(storage, flow):
                screen.say(f"{finding.what}: {finding.text}")
            result: dict[str, Any] = flow.run(
                command.name,
                pipeline=pipeline,
                on=on,
                changes=[hidden(change) for change in changes],  # Prefect keeps what it is given
                fresh=fresh,
                only=only,
            )
    except InputError:
        if is_new:
            remove_empty(storage)
        raise
    return result


def _check_asked(plan: Plan, only: str | None) -> None:
    """The section that a command is for has to be there."""
    examples = {
        "search": ("search", "search: {method: grid, space: {train.optimizer.lr: [0.001, 0.01]}}"),
        "cross_validate": ("cv", "cv: {folds: 5}"),
    }
    if only is None:
        return
    section, example = examples[only]
    if getattr(plan.pipeline, section) is None:
        raise SpecError(
            f"{shown(plan.pipeline_path)} has no section {section}. Add one (such as {example})."
        )


def as_changes(changes: Changes) -> list[str]:
    """``{"train.epochs": 3}`` -> ``["train.epochs=3"]``."""
    if isinstance(changes, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML
    return list(changes)


def site(on: str = "local", set: Changes = ()) -> Site:
    """A site by name or path."""
    return load_site(on, as_changes(set))


def predict(
    model: str,
    source: str,
    *,
    out: str | Path,
    on: str = "local",
    keys: Sequence[str] = (),
    set: Changes = (),
    fresh: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Predicts every row of a source with a trained model.

    Args:
        model: an MLflow model URI (``runs:/ID/model``, ``models:/NAME@ALIAS``) or a folder.
        source: a file, glob, folder or URL; a relative path is looked up here, then in data_root.
        out: the folder of the predictions, a Parquet file a range and ``_SUCCESS``.
        on: the site.
        keys: columns of the source to keep beside each prediction.
        set: values on top of the site file.
        fresh: replace what another model or source left in ``out``.
        trust_code: run the Python code that the model brings, if it does.

    Raises:
        SpecError, DataError: the input is wrong, or the model brings code that is not trusted.
    """
    from ddlflow.infer.predict import infer
    from ddlflow.report.screen import Screen
    from ddlflow.session import Session, hashed
    from ddlflow.tracking.fetch import fetch_model

    where = load_site(on, as_changes(set))
    with Session(site_plan(where, on), Screen()) as session, session.scratch() as fetched:
        folder = fetch_model(model, where.tracking.uri, fetched)
        session.keep_of(folder)
        # Two commands may be given one folder, and --fresh empties it.
        lock = session.storage / "predictions" / hashed(str(Path(out).absolute()))
        with session.lease(lock, f"the predictions in {out}"):
            done = infer(
                folder,
                str(Path(source).absolute()) if Path(source).exists() else source,
                Path(out).absolute(),
                keys=keys,
                data_root=session.data_root,
                threads=session.resources.threads,
                map_over=session.map_over,
                fresh=fresh,
                trust_code=trust_code or where.trust_code,
            )
        for note in done["notes"]:
            session.screen.say(f"note: {note}")
    return {"predictions": str(out), **done}


def make(
    use: MadeName,
    rows: int,
    *,
    out: str | Path,
    seed: int = 1,
    on: str = "local",
    set: Changes = (),
) -> dict[str, Any]:
    """Makes a source's rows as Parquet files under ``out``; the same bytes on any workers."""
    from ddlflow.data.made import plan, write_part
    from ddlflow.report.screen import Screen
    from ddlflow.session import Session

    parts = plan(use, rows, Path(out).absolute(), seed)
    with Session(site_plan(load_site(on, as_changes(set)), on), Screen()) as session:
        written = list(session.map_over(write_part, parts, use))
    return {"rows": rows, "files": len(written), "out": str(out)}


def fetch_higgs(out: str | Path) -> list[Path]:
    """Fetches UCI's HIGGS.csv.gz, checks it, and turns it into ``out/train`` and ``out/test``."""
    from ddlflow.data.higgs import fetch, to_parquet
    from ddlflow.report.screen import Screen

    screen, folder = Screen(), Path(out)
    written: list[Path] = []

    def step(name: str, unit: str, work: Any) -> Any:
        with screen.bar(name, 1.0, unit) as show:

            def on_event(event: dict[str, Any]) -> None:
                if event["event"] == "progress":
                    show(event["done"] / max(event["total"], 1))
                else:
                    screen.say(f"{name}: {event['reason']}; again in {event['wait_s']:.0f} s")

            return work(on_event)

    archive = step("fetch", "bytes", lambda on_event: fetch(folder, on_event=on_event))
    written += step(
        "parquet", "rows", lambda on_event: to_parquet(archive, folder, on_event=on_event)
    )
    return written


def site_plan(where: Site, on: str) -> Plan:
    """A plan without a pipeline, for commands that only need a site."""
    path = find(on, "conf", "site")
    return Plan(None, where, path, path, path.parent)  # type: ignore[arg-type] # no stage reads it
