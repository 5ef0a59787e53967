"""What stands on a flow run's page in Prefect: a search's bar, and tables of what came out."""

import time
from dataclasses import asdict
from typing import Any

from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from ddlflow.runs.events import OnTrial
from ddlflow.runs.results import RunSummary, SweepSummary
from ddlflow.spec.search import Search
from ddlflow.sweep.choose.sampler import total_trials
from ddlflow.sweep.choose.table import TrialRow

SHOWN_TRIALS = 500  # in Prefect's table; MLflow has all
UPDATE_EVERY_S = 2.0


def search_progress(spec: Search, on_trial: OnTrial) -> OnTrial:
    """Passes a search's trials on, and moves a bar on the flow run's page as they end."""
    total = total_trials(spec)
    bar = create_progress_artifact(0.0, key="search", description=f"{total} trials")
    ended, updated = 0, time.monotonic()

    def pass_on(row: TrialRow) -> None:
        nonlocal ended, updated
        on_trial(row)
        ended += 1
        if ended == total or time.monotonic() - updated >= UPDATE_EVERY_S:
            updated = time.monotonic()
            update_progress_artifact(bar, 100 * ended / total)

    return pass_on


def publish(result: RunSummary | SweepSummary) -> None:
    """The stages, the metrics and where to look, as artifacts on the flow run's page."""
    stages = [asdict(stage) | {"stage": stage.name} for stage in result.stages]
    rows = [{name: stage[name] for name in ("stage", "seconds", "cached")} for stage in stages]
    create_table_artifact(table=rows, key="stages", description="Stages of the run")
    where = f"MLflow run {result.run_id} ({result.page})"
    if isinstance(result, RunSummary):
        metrics = [
            {"metric": name, "value": value, "baseline": result.baseline.get(name, "")}
            for name, value in result.metrics.items()
        ]
        create_table_artifact(
            table=metrics, key="metrics", description=f"{where}, {result.model_uri}"
        )
    if result.search is not None:
        best = [{"setting": k, "value": str(v)} for k, v in result.search.best.items()]
        create_table_artifact(table=best, key="best-setting", description=where)
        create_table_artifact(
            table=[_trial_row(row) for row in result.search.trials[:SHOWN_TRIALS]],
            key="trials",
            description=f"Trials of the search; {where} has all",
        )
    if result.cross_validation is not None:
        scores = result.cross_validation.scores
        rows = [{"metric": name, **asdict(values)} for name, values in scores.items()]
        create_table_artifact(table=rows, key="cross-validation", description=where)


def _trial_row(row: TrialRow) -> dict[str, Any]:
    values = {name: str(value) for name, value in row.values.items()}
    return {"trial": row.number, "status": row.status, "score": row.score, **values}
