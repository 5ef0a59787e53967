"""What flows/pipeline.py imports: the stages, what runs them under Prefect, and what records them.

A test pins these names. When one goes or changes its meaning, ``FLOW_API`` is raised, and a
project's older flow gets one line on what to do (``ddlflow.flow.load``).
"""

from collections.abc import Sequence

from ddlflow.data.shards.manifest import Manifest
from ddlflow.flow.artifacts import publish, search_progress
from ddlflow.flow.load import FLOW_API
from ddlflow.flow.stage_task import flow_run_name, run_stage
from ddlflow.report.screen import Screen
from ddlflow.runs.check import precheck, recheck
from ddlflow.runs.finished import Stage
from ddlflow.runs.record import RunRecord, recorded
from ddlflow.runs.record_trials import log_best, log_folds, log_search, trials
from ddlflow.runs.results import PrepareResult, RunSummary, SweepSummary
from ddlflow.runs.session import Session
from ddlflow.runs.stages import evaluate, infer, prepare, train
from ddlflow.runs.summaries import summary, sweep_summary
from ddlflow.runs.sweeps import cross_validate, search, use_best
from ddlflow.spec.given import Given
from ddlflow.spec.load import load

__all__ = [
    "FLOW_API",
    "RunRecord",
    "RunSummary",
    "Session",
    "Stage",
    "SweepSummary",
    "check_prepared",
    "cross_validate",
    "evaluate",
    "flow_run_name",
    "infer",
    "log_best",
    "log_folds",
    "log_search",
    "open_session",
    "prepare",
    "publish",
    "recorded",
    "run_stage",
    "search",
    "search_progress",
    "summary",
    "sweep_summary",
    "train",
    "trials",
    "use_best",
]


def open_session(
    pipeline: Given, on: Given, changes: Sequence[str] = (), *, fresh: bool = False
) -> Session:
    """What the stages of one flow run share: a context manager, opened once the input is checked.

    Args:
        pipeline: a name in pipelines/, a path, or the values of such a file.
        on: a name in conf/, a path, or the values of such a file.
        changes: ``KEY=VALUE`` settings on top of the files.
        fresh: do every stage's work again.

    Raises:
        SpecError, DataError: what can be known to be wrong before a row is read; nothing is
            written.
    """
    request = load(pipeline, on, changes)
    precheck(request)
    return Session(request, Screen(), fresh=fresh)


def check_prepared(session: Session, prepared: Stage[PrepareResult]) -> None:
    """Raises what the prepared rows and the pipeline do not allow, before they are trained on.

    Raises:
        SpecError: with all errors found, a line each.
    """
    for note in recheck(session.request, Manifest.load(prepared.folder)):
        session.screen.say(f"note: {note}")
