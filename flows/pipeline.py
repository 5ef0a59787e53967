"""The pipeline flow: prepare, train, evaluate, infer, in turn, as Prefect tasks.

Run it with ``ddlflow run NAME``, or deploy it: ``prefect deploy flows/pipeline.py:pipeline``.
Tasks pass small manifests, never data. A stage whose work stands shows as Cached.
"""

from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from ddlflow import stages
from ddlflow.check import precheck
from ddlflow.record import recorded, summary
from ddlflow.report.screen import Screen
from ddlflow.session import Session, Stage
from ddlflow.spec.load import load


def run_stage(stage: Callable[..., Stage], *inputs: Any) -> Stage:
    """Runs a stage as a Prefect task that is named after it."""

    @task(name=stage.__name__, cache_policy=NO_CACHE, persist_result=False)
    def run() -> State[Stage]:
        done = stage(*inputs)
        return Completed(name="Cached" if done.cached else "Completed", data=done)

    return run(return_state=True).result()


@flow(
    name="ddlflow",
    flow_run_name="{pipeline} on {on}",
    persist_result=False,
    validate_parameters=False,
)
def pipeline(
    pipeline: str, on: str = "local", changes: list[str] | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Runs a pipeline on a site.

    Args:
        pipeline: a name in pipelines/, or a path.
        on: a name in conf/, or a path.
        changes: ``KEY=VALUE`` settings on top of the files.
        fresh: do every stage's work again.

    Returns:
        run_id, stages, metrics, rows_per_s, model_digest, model_uri, predictions and more.
    """
    plan = load(pipeline, on, changes or [])
    with Session(plan, Screen(), fresh=fresh) as session:
        precheck(plan)
        prepared = run_stage(stages.prepare, session)
        with recorded(session, prepared) as record:
            trained = run_stage(stages.train, session, prepared, record.tell)
            record.trained(trained)
            evaluated = run_stage(stages.evaluate, session, prepared, trained)
            record.evaluated(prepared, trained, evaluated)
            inferred = run_stage(stages.infer, session, prepared, trained)
            model_uri = record.model(trained, inferred.value["location"])
            done = [prepared, trained, evaluated, inferred]
            result = summary(record, done, model_uri, evaluated, inferred)
        publish(result)
    return result


def publish(result: dict[str, Any]) -> None:
    """The stages, the metrics and where to look, as artifacts on the flow run's page."""
    rows = [
        {"stage": s["name"], "seconds": s["seconds"], "cached": s["cached"]}
        for s in result["stages"]
    ]
    create_table_artifact(table=rows, key="stages", description="Stages of the run")
    metrics = [{"metric": name, "value": value} for name, value in result["metrics"].items()]
    create_table_artifact(
        table=metrics,
        key="metrics",
        description=f"MLflow run {result['run_id']} ({result['page']}), {result['model_uri']}",
    )
