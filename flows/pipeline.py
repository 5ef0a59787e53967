"""The pipeline flow: prepare, cross_validate, search, train, evaluate, infer, as Prefect tasks.

Run it with ``ddlflow run NAME``, or deploy it: ``prefect deploy flows/pipeline.py:pipeline``.
Tasks pass small manifests, never data. A stage whose work stands shows as Cached.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow, runtime, tags, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    temporary_settings,
)
from prefect.states import Completed, Crashed, State

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import DdlflowError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.check import precheck, recheck
from ddlflow.runs.launch import Tell
from ddlflow.runs.record import Record, recorded, summary, sweep_summary
from ddlflow.runs.record_trials import log_chosen, log_folds, log_search, trials
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.given import called
from ddlflow.spec.load import load
from ddlflow.sweep.choose.sampler import total_trials

SHOWN_TRIALS = 500  # in Prefect's table; MLflow has all
PROGRESS_EVERY_S = 2.0


def run_stage(stage: Callable[..., Stage], *inputs: Any) -> Stage:
    """Runs a stage as a Prefect task that is named after it."""

    @task(name=stage.__name__, cache_policy=NO_CACHE, persist_result=False)
    def run() -> State[Stage]:
        done = stage(*inputs)
        return Completed(name="Cached" if done.cached else "Completed", data=done)

    return run(return_state=True).result()


def run_name() -> str:
    """What Prefect calls the flow run that is under way."""
    parameters = runtime.flow_run.parameters
    return f"{called(parameters['pipeline'])} on {called(parameters.get('on', 'local'))}"


@flow(
    name="ddlflow",
    flow_run_name=run_name,
    persist_result=False,
    validate_parameters=False,
)
def pipeline(
    pipeline: str | dict[str, Any],
    on: str | dict[str, Any] = "local",
    changes: list[str] | None = None,
    fresh: bool = False,
    only: Literal["cross_validate", "search"] | None = None,
) -> dict[str, Any]:
    """Runs a pipeline on a site.

    Args:
        pipeline: a name in pipelines/, a path, or the values of such a file.
        on: a name in conf/, a path, or the values of such a file.
        changes: ``KEY=VALUE`` settings on top of the files.
        fresh: do every stage's work again.
        only: this stage, and not the training of the final model.

    Returns:
        run_id, stages, metrics, rows_per_s, model_digest, model_uri, predictions and more.
    """
    request = load(pipeline, on, changes or [])
    with Session(request, Screen(), fresh=fresh) as session:
        precheck(request)
        prepared = run_stage(stages.prepare, session)
        for note in recheck(request, Manifest.load(Path(prepared.folder))):
            session.screen.say(f"note: {note}")
        with recorded(session, prepared) as record:
            swept = sweep(session, prepared, record, only)
            if only is not None:
                result = sweep_summary(record, [prepared, *swept])
                publish(result)
                return result
            trained = run_stage(stages.train, session, prepared, record.tell)
            record.trained(trained)
            evaluated = run_stage(stages.evaluate, session, prepared, trained)
            record.evaluated(prepared, trained, evaluated)
            inferred = run_stage(stages.infer, session, prepared, trained)
            model_uri = record.model(prepared, trained)
            done = [prepared, *swept, trained, evaluated, inferred]
            result = summary(record, done, model_uri, evaluated, inferred)
        publish(result)
    return result


def sweep(session: Session, prepared: Stage, record: Record, only: str | None) -> list[Stage]:
    """The folds and the search that the pipeline asks for; stages after it have the best setting.

    Folds of a search are its own. Else a search comes first, and its best setting is what is
    cross-validated.
    """
    spec, cv = session.request.pipeline.search, session.request.pipeline.cv
    done = []
    if spec is not None and only != "cross_validate":
        with trials(record) as tell:
            shown = progress(total_trials(spec), tell)
            searched = run_stage(sweeps.search, session, prepared, shown)
        done.append(searched)
        log_search(record, searched)
        session.use(sweeps.chosen(session, searched))
        log_chosen(record, spec)
    scored = spec is not None and spec.cv and only is None  # the search has the folds' scores
    if cv is not None and only != "search" and (cv.predictions or not scored):
        validated = run_stage(sweeps.cross_validate, session, prepared)
        done.append(validated)
        log_folds(record, validated)
    return done


def progress(total: int, tell: Tell) -> Tell:
    """Passes trials on, and moves a bar on the flow run's page as they end."""
    bar = create_progress_artifact(0.0, key="search", description=f"{total} trials")
    done, told = 0, time.monotonic()

    def told_too(event: dict[str, Any]) -> None:
        nonlocal done, told
        tell(event)
        done += 1
        if done == total or time.monotonic() - told >= PROGRESS_EVERY_S:
            told = time.monotonic()
            update_progress_artifact(bar, 100 * done / total)

    return told_too


def publish(result: dict[str, Any]) -> None:
    """The stages, the metrics and where to look, as artifacts on the flow run's page."""
    rows = [
        {"stage": s["name"], "seconds": s["seconds"], "cached": s["cached"]}
        for s in result["stages"]
    ]
    create_table_artifact(table=rows, key="stages", description="Stages of the run")
    where = f"MLflow run {result['run_id']} ({result['page']})"
    if "metrics" in result:
        beside = result["baseline"]
        metrics = [
            {"metric": name, "value": value, "baseline": beside.get(name, "")}
            for name, value in result["metrics"].items()
        ]
        create_table_artifact(
            table=metrics, key="metrics", description=f"{where}, {result['model_uri']}"
        )
    if "search" in result:
        best = [{"setting": k, "value": str(v)} for k, v in result["search"]["best"].items()]
        create_table_artifact(table=best, key="best-setting", description=where)
        create_table_artifact(
            table=[trial_row(row) for row in result["search"]["trials"][:SHOWN_TRIALS]],
            key="trials",
            description=f"Trials of the search; {where} has all",
        )
    if "cross_validation" in result:
        scores = result["cross_validation"]["scores"]
        rows = [{"metric": name, **values} for name, values in scores.items()]
        create_table_artifact(table=rows, key="cross-validation", description=where)


def trial_row(row: dict[str, Any]) -> dict[str, Any]:
    """A trial as a row of Prefect's table."""
    values = {name: str(value) for name, value in row["values"].items()}
    return {"trial": row["number"], "status": row["status"], "score": row["score"], **values}


# ---- what `ddlflow run` and `ddlflow doctor` call ----------------------------------------------


def where() -> str:
    """Which Prefect has the flow runs: a server's address, or the embedded one's folder."""
    return PREFECT_API_URL.value() or str(PREFECT_HOME.value())


def run(command: str, **parameters: Any) -> dict[str, Any]:
    """Runs the flow, its run tagged with the command, so that `end_lost` finds it."""
    # A command's own record tells that it lives; the heartbeat's thread would be waited for.
    alone = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with alone, tags(f"command:{command}"):
        result: dict[str, Any] = pipeline(**parameters)
    return result


def end_lost(command: str, where: str, message: str) -> int:
    """Sets the flow run and the task runs of a command that ended without a word to Crashed.

    Args:
        command: its name.
        where: it ran, as the function says it; empty if that is not known: here.
        message: of the new states.

    Returns:
        How many flow runs it was: 0 if the command was lost before its flow began, or after.

    Raises:
        DdlflowError: it ran on an embedded server in another folder.
    """
    is_server = where.startswith(("http://", "https://"))
    if where and not is_server and where != str(PREFECT_HOME.value()):
        raise DdlflowError(f"it is kept elsewhere; set PREFECT_HOME={where}")
    there = PREFECT_API_URL.value() if not where else where if is_server else None
    own = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"command:{command}"]))
    begun = TaskRunFilter(
        state=TaskRunFilterState(
            type=TaskRunFilterStateType(any_=[s for s in StateType if s not in TERMINAL_STATES])
        )
    )
    with (
        temporary_settings({PREFECT_API_URL: there}),
        get_client(sync_client=True) as client,
    ):
        for task_run in client.read_task_runs(flow_run_filter=own, task_run_filter=begun):
            client.set_task_run_state(task_run.id, Crashed(message=message), force=True)
        found = client.read_flow_runs(flow_run_filter=own)
        open_runs = [run for run in found if run.state is None or not run.state.is_final()]
        for flow_run in open_runs:
            client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
    return len(open_runs)
