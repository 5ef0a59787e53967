"""What a command says when it is done: on the screen, in ``--json`` and in summary.json."""

from collections.abc import Sequence
from typing import Any

from ddlflow.runs.evaluated import coefficients_of
from ddlflow.runs.finished import Stage, Value
from ddlflow.runs.record import RunRecord, redacted_site, rows_per_s
from ddlflow.runs.result_json import to_json
from ddlflow.runs.results import (
    CrossValidationResult,
    EvaluateResult,
    InferResult,
    RunSummary,
    SearchResult,
    SearchSummary,
    StageTime,
    SweepSummary,
    TrainResult,
)
from ddlflow.runs.sweeps import table_of
from ddlflow.store.site_storage import write_json


def summary(
    record: RunRecord,
    stages: Sequence[Stage[Any]],
    model_uri: str,
) -> RunSummary:
    """Of a run, with its model; written beside its report."""
    trained = _stage_of(stages, TrainResult)
    evaluated = _stage_of(stages, EvaluateResult)
    inferred = _stage_of(stages, InferResult)
    assert trained is not None
    assert evaluated is not None
    assert inferred is not None
    result = RunSummary(
        run_id=record.run_id,
        stages=_times(stages),
        metrics=evaluated.value.metrics,
        baseline=evaluated.value.baseline,
        notes=evaluated.value.notes,
        rows_per_s=rows_per_s(trained),
        model_digest=trained.value.model_digest,
        model_uri=model_uri,
        model=trained.value.model,
        predictions=inferred.value.predictions,
        report=str(record.folder / "report"),
        tracking_uri=redacted_site(record.session)["tracking"]["uri"],
        page=record.run.page,
        coefficients=coefficients_of(evaluated),
        search=_search(stages),
        cross_validation=_cross_validation(stages),
    )
    write_json(record.folder / "summary.json", to_json(result))
    return result


def sweep_summary(record: RunRecord, stages: Sequence[Stage[Any]]) -> SweepSummary:
    """Of a search or a cross-validation alone; written beside its report."""
    result = SweepSummary(
        run_id=record.run_id,
        stages=_times(stages),
        report=str(record.folder / "report"),
        tracking_uri=redacted_site(record.session)["tracking"]["uri"],
        page=record.run.page,
        search=_search(stages),
        cross_validation=_cross_validation(stages),
    )
    write_json(record.folder / "summary.json", to_json(result))
    return result


def _search(stages: Sequence[Stage[Any]]) -> SearchSummary | None:
    searched = _stage_of(stages, SearchResult)
    if searched is None:
        return None
    found = searched.value
    return SearchSummary(
        metric=found.metric,
        better=found.better,
        score=found.best.score,
        best_trial=found.best.number,
        best=found.best.values,
        statuses=found.statuses,
        trials=tuple(table_of(searched)),
    )


def _cross_validation(stages: Sequence[Stage[Any]]) -> CrossValidationResult | None:
    validated = _stage_of(stages, CrossValidationResult)
    return None if validated is None else validated.value


def _stage_of(stages: Sequence[Stage[Any]], kind: type[Value]) -> Stage[Value] | None:
    return next((stage for stage in stages if isinstance(stage.value, kind)), None)


def _times(stages: Sequence[Stage[Any]]) -> tuple[StageTime, ...]:
    return tuple(StageTime(s.name, round(s.seconds, 3), s.cached) for s in stages)
