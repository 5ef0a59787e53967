"""What a command leaves on standard output, and how it says on standard error why it ended."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

from ddlflow.errors import DdlflowError


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


def show_run(result: dict[str, Any]) -> None:
    """The last screen: what came out, where it is, what to type next."""
    from ddlflow.report.screen import Screen

    screen = Screen(sys.stdout)
    rows = [
        (stage["name"], "cached" if stage["cached"] else f"{stage['seconds']:.1f} s")
        for stage in result["stages"]
    ]
    screen.table("", ["stage", "time"], rows)
    metrics = [
        (name, f"{value:.4f}") for name, value in result["metrics"].items() if name != "rows"
    ]
    screen.table("", ["metric", "value"], metrics)
    screen.say("")
    screen.facts(
        {
            "run": result["run_id"],
            "trained at": f"{result['rows_per_s']:,.0f} rows/s",
            "digest": result["model_digest"],
            "model": result["model_uri"],
            "predictions": result["predictions"],
            "report": result["report"],
            "next": "ddlflow ui",
            "or": result["page"],
        }
    )


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
            f"{type(error).__name__}: {error}\nThis was not foreseen. The same command with "
            "--debug shows where it happened; please report that."
        )
        status = 1
    for line in text.splitlines():
        sys.stderr.write(f"ddlflow: {line}\n")
    return status
