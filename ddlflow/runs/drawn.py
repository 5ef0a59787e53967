"""The report of a pipeline run: drawn once, however often the run is given again."""

from ddlflow.runs.evaluated import coefficients_of, scores_of
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import EvaluateResult, PrepareResult, ReportResult, TrainResult
from ddlflow.runs.session import Session
from ddlflow.runs.versions import VERSION
from ddlflow.store.store import Store

FOLDER = "report"  # in the stage's own


def report(
    session: Session,
    prepared: Stage[PrepareResult],
    trained: Stage[TrainResult],
    evaluated: Stage[EvaluateResult],
) -> Stage[ReportResult]:
    """Draws the plots and writes the numbers of what was trained and evaluated.

    Args:
        session: whose pipeline names them.
        prepared: has the names of classes.
        trained: has the history.
        evaluated: has the scores and curves.
    """
    pipeline = session.request.pipeline
    stopping = pipeline.train.early_stopping
    title = f"{pipeline.name}, {evaluated.value.split} split"
    settings = {
        "version": VERSION["report"],
        "trained": trained.key,
        "evaluated": evaluated.key,
        "classes": prepared.value.classes,
        "title": title,
        "label": pipeline.data.label,
        "labels": pipeline.labels,
        "metric": stopping.metric if stopping else None,
    }

    def work(folder: Store) -> ReportResult:
        # Here: a report that stands needs neither PyTorch nor Matplotlib.
        from ddlflow.report.plots import write_report
        from ddlflow.train.tasks.measures import measures_of

        scored = scores_of(evaluated)
        with folder.writing_folder(FOLDER, "report.md") as to:
            files = write_report(
                to,
                history=trained.value.history,
                metrics=scored.metrics,
                baseline=scored.baseline,
                curves=scored.curves,
                classes=list(prepared.value.classes) or None,
                histogram=scored.histogram,
                title=title,
                label=pipeline.data.label,
                metric=stopping.metric if stopping else measures_of(pipeline.labels).drawn,
                coefficients=coefficients_of(evaluated),
            )
        return ReportResult(len(files))

    return session.stage("report", settings, work, ReportResult, results=[f"{FOLDER}/**/*"])
