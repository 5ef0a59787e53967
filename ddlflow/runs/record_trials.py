"""What cross_validate and search leave in MLflow and in the report folder."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ddlflow.errors import TrackingError
from ddlflow.redact import redacted_values
from ddlflow.runs.events import OnTrial
from ddlflow.runs.finished import Stage
from ddlflow.runs.record import RunRecord
from ddlflow.runs.result_json import to_json
from ddlflow.runs.results import (
    TRIALS_TABLE,
    CrossValidationResult,
    FoldResult,
    ScoreSpread,
    SearchResult,
)
from ddlflow.runs.sweeps import table_of
from ddlflow.spec.given import flat
from ddlflow.spec.search import Search
from ddlflow.sweep.choose.table import TrialRow

ASK_AGAIN_S = 60.0  # a server that did not answer
STATUS = {"done": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}  # a tag tells pruned ones


def log_folds(record: RunRecord, validated: Stage[CrossValidationResult]) -> None:
    """Scores a fold, mean, standard deviation and error; the folds' learning curves."""
    record.workers()
    folds, scores = validated.value.folds, validated.value.scores
    several = max(fold.repeat for fold in folds) > 0
    for fold in folds:
        name = f"fold_{fold.fold}"
        name = f"repeat_{fold.repeat}_{name}" if several else name
        known = {f"{name}/{k}": v for k, v in fold.metrics.items() if v is not None}
        record.run.log_metrics(known, step=fold.epochs)
    record.run.log_metrics(_spread("cv_", scores), step=0)
    kept = record.folder / "cross_validation.json"
    values = {name: to_json(validated.value)[name] for name in ("folds", "scores")}
    kept.write_text(json.dumps(values, indent=1))
    record.run.log_file(kept, "cross_validation")
    plot = _draw_folds(record.folder / "report", folds)
    if plot is not None:
        record.run.log_file(plot, "cross_validation")


def _spread(prefix: str, scores: Mapping[str, ScoreSpread]) -> dict[str, float]:
    found = {}
    for name, values in scores.items():
        for what, value in asdict(values).items():
            if value is not None:
                end = "" if what == "mean" else f"_{what}"
                found[f"{prefix}{name}{end}"] = value
    return found


def _draw_folds(folder: Path, folds: Sequence[FoldResult]) -> Path | None:
    """Each metric over the epochs, a line a fold; None where there is but one epoch."""
    from ddlflow.report.curves import Line, write_lines

    lines: dict[str, list[Line]] = {}
    for fold in folds:
        name = f"fold {fold.fold}"
        name = f"{name}, repeat {fold.repeat}" if fold.repeat else name
        for metric in ["loss", *(k for k in fold.history[0] if k.startswith("val_"))]:
            points = [
                (epoch, value)
                for epoch, row in enumerate(fold.history, 1)
                if (value := row.get(metric)) is not None
            ]
            if len(points) > 1:
                lines.setdefault(metric, []).append((name, points))
    if not lines:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return write_lines(folder / "folds.png", lines)


@contextmanager
def trials(record: RunRecord) -> Iterator[OnTrial]:
    """Takes each trial of a search as it ends: a child run in MLflow.

    A thread sends them; what the server does not take waits, and the next command sends it.
    """
    session = record.session
    said: list[str] = []
    away: dict[str, str] = {}
    asked = time.monotonic()

    def log(row: TrialRow) -> None:
        from ddlflow.tracking.child import log_child

        nonlocal asked
        if time.monotonic() - asked > ASK_AGAIN_S:
            asked = time.monotonic()
            away.clear()
        try:
            waits = log_child(
                session.storage / "tracking",
                session.request.site.tracking.uri,
                session.request.site.tracking.experiment,
                record.run.local_id,  # the same whether MLflow answers or not
                child_of(row, metric=metric, folds=has_folds),
                away=away,
            )
        except (TrackingError, OSError) as error:  # never the search's end
            waits = str(error)
        if waits and not said:
            said.append(waits)

    from ddlflow.sweep.choose.space import metric_of

    metric, _ = metric_of(session.request.pipeline)
    spec = session.request.pipeline.search
    assert spec is not None
    has_folds = spec.cv
    with ThreadPoolExecutor(1, "trials") as pool:
        sent = []

        yield lambda row: sent.append(pool.submit(log, row))
        for one in sent:
            one.result()
    for sentence in said:
        session.screen.say(sentence)


def child_of(row: TrialRow, *, metric: str, folds: bool) -> Any:
    """A trial's row of the table as a child run."""
    from ddlflow.tracking.child import Child

    last = {metric: row.score, f"{metric}_std": row.std, f"{metric}_stderr": row.stderr}
    if folds:
        last |= {f"fold_{k}/{metric}": score for k, score in enumerate(row.scores)}
    last |= {"seconds": row.seconds, "epochs": row.epochs}
    curve = [(epoch, {f"val_{metric}": v}) for epoch, v in row.curve if v is not None]
    return Child(
        number=row.number,
        name=f"trial {row.number}",
        tags={
            "ddlflow.trial": row.number,
            "ddlflow.status": row.status,
            **({"ddlflow.reason": row.reason} if row.reason else {}),
        },
        params=flat(row.values),
        metrics=[*curve, (row.epochs, {k: v for k, v in last.items() if v is not None})],
        status=STATUS[row.status],  # type: ignore[arg-type] # one of the three
        seconds=row.seconds,
    )


def log_search(record: RunRecord, searched: Stage[SearchResult]) -> list[Path]:
    """The table of trials, the best setting and the plots; returns the plots."""
    from ddlflow.report.search import write_search
    from ddlflow.sweep.choose.importance import importances
    from ddlflow.sweep.choose.table import outcome_of

    record.workers()
    pipeline = record.session.request.pipeline
    spec = pipeline.search
    assert spec is not None
    value = searched.value
    table = table_of(searched)
    best, metric = value.best, value.metric
    record.run.log_file(record.here(searched.folder, TRIALS_TABLE), "search")
    if best.score is not None:
        record.run.log_metrics({f"search_{metric}": best.score}, step=0)
    statuses = {f"ddlflow.trials.{k}": v for k, v in value.statuses.items()}
    record.run.log_tags({"ddlflow.best_trial": best.number, **statuses})
    # A list that grows is no axis of a plot.
    space = {} if spec.method == "forward" else spec.space
    outcomes = list(map(outcome_of, table))
    plots = write_search(
        record.folder / "report" / "search",
        rows=table,
        space=space,
        metric=metric,
        better=value.better,
        importances=importances(space, outcomes, value.better) if space else {},
        title=f"{pipeline.name}: {value.trials} trials",
    )
    for plot in plots:
        record.run.log_file(plot, "search")
    return plots


def log_best(record: RunRecord, spec: Search) -> None:
    """After the search: the pipeline as it is trained, and the best trial's settings."""
    request = record.session.request
    pipeline = redacted_values(request.pipeline.model_dump(mode="json", by_alias=True))
    text = yaml.safe_dump(pipeline, sort_keys=False)
    (record.folder / "pipeline.yaml").write_text(text)
    record.run.log_text(text, "pipeline.yaml")
    record.run.log_params(
        {
            name: value
            for name, value in flat(pipeline).items()
            if any(f"{name}.".startswith(f"{one}.") for one in spec.space)
        }
    )
