"""What a command leaves on standard output, and how it says on standard error why it ended."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ddlflow.errors import DdlflowError
from ddlflow.redact import redacted_text

if TYPE_CHECKING:
    from ddlflow.api import RunSummary, SearchSummary, SweepSummary
    from ddlflow.report.screen import Screen

SHOWN_TERMS = 8  # of a linear model
SHOWN_TRIALS = 10  # the best of a search, on the screen


@contextlib.contextmanager
def stdout_for_result(as_json: bool) -> Iterator[None]:
    """With --json, whatever else prints to standard output prints to standard error."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: Any) -> None:
    """Prints one JSON object."""
    typer.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for a number that does not exist."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def show_findings(findings: Sequence[Any]) -> None:
    """A line for each thing that was looked at (``ddlflow.runs.check.finding``)."""
    signs = {"ok": "ok   ", "note": "note ", "error": "ERROR"}
    for finding in findings:
        typer.echo(f"{signs[finding.level]} {finding.what}: {finding.text}")


def show_run(result: "RunSummary") -> None:
    """The last screen of a run: what came out, where it is, what to type next."""
    from ddlflow.report.screen import Screen

    screen = Screen(sys.stdout)
    rows = [
        (stage.name, "cached" if stage.cached else f"{stage.seconds:.1f} s")
        for stage in result.stages
    ]
    screen.table("", ["stage", "time"], rows)
    metrics = [
        (name, _score(value), _score(result.baseline.get(name)))
        for name, value in result.metrics.items()
        if name != "rows"
    ]
    screen.table("", ["metric", "value", "baseline"], metrics)
    _show_coefficients(screen, result)
    _show_swept(screen, result)
    screen.say("")
    screen.facts(
        {
            "run": result.run_id,
            "trained at": f"{result.rows_per_s:,.0f} rows/s",
            "digest": result.model_digest,
            "model": result.model_uri,
            "predictions": result.predictions,
            "report": result.report,
            "next": "ddlflow ui",
            "or": result.page,
        }
    )


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _show_coefficients(screen: "Screen", result: "RunSummary") -> None:
    """The strongest terms of a linear model, in the source's units."""
    from ddlflow.report.terms import notes_of, strongest

    table = result.coefficients
    if table is None:
        return
    rows = []
    for term in strongest(table.terms, SHOWN_TERMS):
        of_class = "" if term.of_class is None else f"{term.of_class}: "
        error, p_value = term.std_error, term.p_value
        errors = (
            "" if error is None else f"{error:.4g}",
            "" if p_value is None else f"{p_value:.3g}",
        )
        rows.append((of_class + term.name, f"{term.coefficient:.5g}", *errors))
    screen.table("", ["strongest features", "coefficient", "std error", "p"], rows)
    for note in notes_of(table):
        screen.say(note)


def show_sweep(result: "SweepSummary", pipeline: str) -> None:
    """The last screen of a search or a cross-validation."""
    from ddlflow.report.screen import Screen

    screen = Screen(sys.stdout)
    _show_swept(screen, result)
    screen.say("")
    facts = {"run": result.run_id, "report": result.report}
    folds = result.cross_validation
    if folds is not None and folds.predictions is not None:
        facts["predictions"] = folds.predictions
    facts["next"] = f"ddlflow run {pipeline}" if result.search is not None else "ddlflow ui"
    screen.facts(facts | {"or": result.page})


def _show_swept(screen: "Screen", result: "RunSummary | SweepSummary") -> None:
    """The best trials, and the scores over the folds."""
    if result.search is not None:
        _show_trials(screen, result.search)
    if result.cross_validation is not None:
        screen.say(f"\n{len(result.cross_validation.folds)} folds")
        screen.table(
            "",
            ["metric", "mean", "std", "standard error"],
            [
                [name, *map(_score, (values.mean, values.std, values.stderr))]
                for name, values in result.cross_validation.scores.items()
            ],
        )


def _show_trials(screen: "Screen", found: "SearchSummary") -> None:
    ended = ", ".join(f"{number} {what}" for what, number in found.statuses.items())
    screen.say(f"\n{len(found.trials)} trials: {ended}")
    names = list(dict.fromkeys(name for row in found.trials for name in row.values))
    sign = -1 if found.better == "higher" else 1
    best = sorted(
        (sign * row.score, row.number, row)
        for row in found.trials
        if row.status == "done" and row.score is not None
    )
    screen.table(
        "",
        ["trial", found.metric, "+-", *_short(names)],
        [
            [
                str(row.number),
                _score(row.score),
                _score(row.stderr),
                *(_cell(row.values.get(name, "")) for name in names),
            ]
            for _, _, row in best[:SHOWN_TRIALS]
        ],
    )


def _short(names: list[str]) -> list[str]:
    """Dotted names by their last part, where that tells them apart."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say_error(error: BaseException) -> int:
    """Says on standard error what ended the command, and returns its exit status."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, DdlflowError):
        text, status = str(error), error.exit_status
    elif hasattr(error, "format_message"):  # typer's own, which it keeps private: a wrong option
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return 0
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "ddlflow"
        said = error.format_message()
        end = "" if said.endswith((".", "?")) else "."
        text, status = f"{said}{end} See `{name} --help`.", 2
    elif hasattr(error, "exit_status"):  # Interrupted, without importing the session
        text = f"stopped by {error}. The same command goes on from there."
        status = error.exit_status
    else:
        text = (
            f"{type(error).__name__}: {redacted_text(str(error))}\nThis was not foreseen. The "
            "same command with --debug shows where it happened; please report that."
        )
        status = 1
    for line in text.splitlines():
        sys.stderr.write(f"ddlflow: {line}\n")
    return status
