"""Commands on runs that are recorded or were lost: reproduce, audit, compare, doctor."""

import itertools
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ddlflow.cli.options import Json, On, TrustCode
from ddlflow.cli.output import print_json, show_findings, stdout_for_result

WIDTH, BEFORE = 24, 6  # characters of a table's cell; of what is equal before a difference
ALL_DIGITS = 17  # of a 64-bit number
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="MLflow's id of a run.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a recorded value; it is named."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    for command in (reproduce, audit, compare, doctor):
        app.command()(command)


def reproduce(
    run_id: RunId,
    on: On = "local",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Ranks to use.")] = None,
    changes: Changes = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Train a recorded run again and say whether it is identical, or where it first differs."""
    from ddlflow.api import reproduce as again

    with stdout_for_result(as_json):
        verdict = again(run_id, on=on, set=changes or [], workers=workers, trust_code=trust_code)
    if as_json:
        print_json(verdict.to_json())
    elif verdict.verdict == "identical":
        typer.echo(
            f"identical: model {verdict.model_digest}, and {verdict.steps_compared} steps of the "
            "digest trail before it"
        )
    else:
        first = verdict.first_difference
        if first is not None:
            was, now = first.loss
            loss = f"{was:.9g} then, {now:.9g} now ({now - was:+.3g})"
            typer.echo(
                f"different: first seen at step {first.step}, after {verdict.steps_compared} "
                f"equal entries of the digest trail; mean loss "
                f"{loss if was != now else f'still the same, {was:.9g}'}"
            )
        else:
            typer.echo(f"different: model {verdict.model_digest}")
        typer.echo(f"likely cause: {verdict.cause}")
    raise typer.Exit(0 if verdict.verdict == "identical" else 1)


def audit(run_id: RunId, on: On = "local", as_json: Json = False) -> None:
    """Prove that every row entered one batch of every epoch, and that the shards are whole."""
    from datetime import UTC, datetime

    from ddlflow.api import audit as prove
    from ddlflow.report.screen import Screen

    with stdout_for_result(as_json):
        found = prove(run_id, on=on)
    if as_json:
        print_json(found.to_json())
    else:
        rows = [
            (
                datetime.fromtimestamp(int(a.name) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                str(a.world),
                f"{a.first[0]}.{a.first[1]}",
                f"{a.last[0]}.{a.last[1]}",
                f"{a.steps:,}",
                f"{a.steps - a.kept:,}",
            )
            for a in found.attempts
        ]
        screen = Screen(sys.stdout)
        columns = ["attempt (UTC)", "ranks", "first epoch.step", "last", "steps", "done again"]
        screen.table("", columns, rows)
        for fault in found.faults:
            screen.say(f"FAULT {fault}")
        if not found.faults:
            screen.say(
                f"{found.epochs} epochs, {found.steps:,} steps: each of the {found.rows:,} rows "
                "entered one batch of each epoch."
            )
        screen.say(
            f"{found.shards:,} shards were read and compared with their SHA-256."
            if found.shards is not None
            else "The prepared data is not on this storage: no shard was read."
        )
    raise typer.Exit(1 if found.faults else 0)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="MLflow's run ids.")],
    on: On = "local",
    as_json: Json = False,
) -> None:
    """Show what differs between runs: settings, data, versions and results, with a plot."""
    from ddlflow.api import compare as beside
    from ddlflow.report.screen import Screen

    with stdout_for_result(as_json):
        found = beside(runs, on=on)
    if as_json:
        print_json(found.to_json())
        return
    screen = Screen(sys.stdout)
    names = [f"{run.name} ({run.run_id[:8]})" for run in found.runs]
    groups = list(dict.fromkeys(row.group for row in found.rows))
    for group in groups:
        rows = [(row.name, *_shown(row.values)) for row in found.rows if row.group == group]
        screen.table(group, ["", *names], rows)
        screen.say("")
    screen.say(f"{found.same} settings, tags and metrics are the same.")
    if found.plot:
        screen.say(f"plot: {found.plot}")
    screen.say(f"MLflow's own page: {found.page}")


def doctor(
    on: On = "local",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the site."),
    ] = None,
    as_json: Json = False,
) -> None:
    """End what commands that were killed left behind, in Prefect, MLflow and the storage."""
    from dataclasses import asdict

    from ddlflow.api import doctor as look

    with stdout_for_result(as_json):
        findings = look(on, changes or [])
    bad = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"ok": bad == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        show_findings(findings)
    raise typer.Exit(1 if bad else 0)


def _shown(values: Sequence[str | float | None]) -> list[str]:
    """Cells of a row: as short as they can be while what differs can be seen."""
    digits = 6
    different = len(set(values))
    while digits < ALL_DIGITS and len({_text(value, digits) for value in values}) < different:
        digits += 1
    texts = [_text(value, digits) for value in values]
    if max(map(len, texts)) <= WIDTH:
        return texts
    if len({text[:WIDTH] for text in texts}) < len(set(texts)):  # they differ further on
        equal = next(k for k in itertools.count(1) if len({text[:k] for text in texts}) > 1) - 1
        start = max(0, equal - BEFORE)
        texts = [f"...{text[start:]}" if start else text for text in texts]
    return [text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..." for text in texts]


def _text(value: str | float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
