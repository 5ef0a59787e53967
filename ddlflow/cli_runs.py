"""Commands on runs that are recorded: reproduce, compare, audit."""

from typing import Annotated

import typer

from ddlflow.output import print_json, stdout_for_result

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="MLflow's id of a run.")]
On = Annotated[str, typer.Option("--on", help="The site: a name in conf/, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a recorded value; it is named."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    for command in (reproduce, compare):
        app.command()(command)


def reproduce(
    run_id: RunId,
    on: On = "local",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Ranks to use.")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Train a recorded run again and say whether it is identical, or where it first differs."""
    from ddlflow.reproduce import reproduce as again

    with stdout_for_result(as_json):
        verdict = again(run_id, on=on, changes=changes or [], workers=workers)
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
            was, now = first["loss"]
            typer.echo(
                f"different: first seen at step {first['step']}, after {verdict.steps_compared} "
                f"equal entries of the digest trail; mean loss {was:.9g} then, {now:.9g} now "
                f"({now - was:+.3g})"
            )
        else:
            typer.echo(f"different: model {verdict.model_digest}")
        typer.echo(f"likely cause: {verdict.cause}")
    raise typer.Exit(0 if verdict.verdict == "identical" else 1)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="MLflow's run ids.")],
    on: On = "local",
    as_json: Json = False,
) -> None:
    """Show what differs between runs: settings, data, versions and results, with a plot."""
    import sys

    from ddlflow.compare import compare as beside
    from ddlflow.report.screen import Screen

    with stdout_for_result(as_json):
        found = beside(runs, on=on)
    if as_json:
        print_json(found.to_json())
        return
    screen = Screen(sys.stdout)
    names = [f"{run['name']} ({run['run_id'][:8]})" for run in found.runs]
    groups = list(dict.fromkeys(row.group for row in found.rows))
    for group in groups:
        rows = [(row.name, *map(_shown, row.values)) for row in found.rows if row.group == group]
        screen.table(group, ["", *names], rows)
        screen.say("")
    screen.say(f"{found.same} settings, tags and metrics are the same.")
    if found.plot:
        screen.say(f"plot: {found.plot}")
    screen.say(f"MLflow's own page: {found.page}")


def _shown(value: str | float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else value
    return text if len(text) <= 24 else f"{text[:21]}..."
