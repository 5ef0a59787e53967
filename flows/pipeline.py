"""The pipeline flow: prepare, cross_validate, search, train, evaluate, infer, as Prefect tasks.

Run it with ``ddlflow run NAME``, or deploy it: ``prefect deploy flows/pipeline.py:pipeline``.
Tasks pass small manifests, never data. A stage whose work stands shows as Cached.
"""

from typing import Any, Literal

from prefect import flow

from ddlflow import flow_api
from ddlflow.flow_api import (
    RunRecord,
    RunSummary,
    Session,
    Stage,
    SweepSummary,
    recorded,
    run_stage,
)

FLOW_API = 2  # of ddlflow.flow_api, for which this file was written


@flow(
    name="ddlflow",
    flow_run_name=flow_api.flow_run_name,
    persist_result=False,
    validate_parameters=False,
)
def pipeline(
    pipeline: str | dict[str, Any],
    on: str | dict[str, Any] = "local",
    changes: list[str] | None = None,
    fresh: bool = False,
    only: Literal["cross_validate", "search"] | None = None,
) -> RunSummary | SweepSummary:
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
    with flow_api.open_session(pipeline, on, changes or [], fresh=fresh) as session:
        prepared = run_stage(flow_api.prepare, session)
        flow_api.check_prepared(session, prepared)
        with recorded(session, prepared) as record:
            swept = sweep(session, prepared, record, only)
            if only is None:
                result = final(session, prepared, record, swept)
            else:
                result = flow_api.sweep_summary(record, [prepared, *swept])
        flow_api.publish(result)
    return result


def sweep(session: Session, prepared: Stage, record: RunRecord, only: str | None) -> list[Stage]:
    """The folds and the search that the pipeline asks for; stages after it have the best setting.

    Folds of a search are its own. Else a search comes first, and its best setting is what is
    cross-validated.
    """
    spec, cv = session.request.pipeline.search, session.request.pipeline.cv
    done = []
    if spec is not None and only != "cross_validate":
        with flow_api.trials(record) as log_trial:
            on_trial = flow_api.search_progress(spec, log_trial)
            searched = run_stage(flow_api.search, session, prepared, on_trial)
        done.append(searched)
        flow_api.log_search(record, searched)
        flow_api.use_best(session, searched)
        flow_api.log_best(record, spec)
    scored = spec is not None and spec.cv and only is None  # the search has the folds' scores
    if cv is not None and only != "search" and (cv.predictions or not scored):
        validated = run_stage(flow_api.cross_validate, session, prepared)
        done.append(validated)
        flow_api.log_folds(record, validated)
    return done


def final(session: Session, prepared: Stage, record: RunRecord, swept: list[Stage]) -> RunSummary:
    """Trains the model, scores it, and predicts with it."""
    trained = run_stage(flow_api.train, session, prepared, record.on_train_event)
    record.trained(trained)
    evaluated = run_stage(flow_api.evaluate, session, prepared, trained)
    record.evaluated(prepared, trained, evaluated)
    model_uri = record.model(prepared, trained)
    inferred = run_stage(flow_api.infer, session, prepared, trained)
    done = [prepared, *swept, trained, evaluated, inferred]
    return flow_api.summary(record, done, model_uri)
