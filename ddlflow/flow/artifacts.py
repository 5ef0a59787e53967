"""What stands on a flow run's page in Prefect: a search's bar, and tables of what came out."""

import time
from typing import Any

from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from ddlflow.runs.launch import Tell
from ddlflow.spec.search import Search
from ddlflow.sweep.choose.sampler import total_trials

SHOWN_TRIALS = 500  # in Prefect's table; MLflow has all
UPDATE_EVERY_S = 2.0


def search_progress(spec: Search, tell: Tell) -> Tell:
    """Passes a search's trials on, and moves a bar on the flow run's page as they end."""
    total = total_trials(spec)
    bar = create_progress_artifact(0.0, key="search", description=f"{total} trials")
    ended, updated = 0, time.monotonic()

    def on_trial(event: dict[str, Any]) -> None:
        nonlocal ended, updated
        tell(event)
        ended += 1
        if ended == total or time.monotonic() - updated >= UPDATE_EVERY_S:
            updated = time.monotonic()
            update_progress_artifact(bar, 100 * ended / total)

    return on_trial


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
            table=[_trial_row(row) for row in result["search"]["trials"][:SHOWN_TRIALS]],
            key="trials",
            description=f"Trials of the search; {where} has all",
        )
    if "cross_validation" in result:
        scores = result["cross_validation"]["scores"]
        rows = [{"metric": name, **values} for name, values in scores.items()]
        create_table_artifact(table=rows, key="cross-validation", description=where)


def _trial_row(row: dict[str, Any]) -> dict[str, Any]:
    values = {name: str(value) for name, value in row["values"].items()}
    return {"trial": row["number"], "status": row["status"], "score": row["score"], **values}
