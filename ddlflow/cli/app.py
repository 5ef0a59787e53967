"""The command line. Heavy packages are imported by the command that needs them."""

import atexit
import logging
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddlflow.cli.options import Changes, Fresh, Json, On, PipelineName, TrustCode
from ddlflow.cli.output import print_json, say_error, show_findings, show_run, stdout_for_result
from ddlflow.cli.runs import add_to as add_runs_to
from ddlflow.cli.sweeps import add_to as add_sweeps_to
from ddlflow.redact import redacted_change

if TYPE_CHECKING:  # pydantic would double the time of --help
    from ddlflow.api import MadeName

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Big tables to trained, tracked and applied PyTorch models. "
    "Start with: ddlflow run quickstart",
)
data = typer.Typer(no_args_is_help=True, help="Make or fetch data sets.", rich_markup_mode=None)
app.add_typer(data, name="data")
add_runs_to(app)
add_sweeps_to(app)

Rows = Annotated[int, typer.Option("--rows", min=1, help="How many rows.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the Parquet files.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed, other rows.")]


def _version(wanted: bool) -> None:
    if wanted:
        from ddlflow import __version__

        typer.echo(f"ddlflow {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[  # taken by `main`, wherever it stands
        bool, typer.Option("--debug", help="Show tracebacks and logs.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def run(
    pipeline: PipelineName,
    on: On = "local",
    changes: Changes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: prepare, search if asked, train, evaluate, infer; MLflow and Prefect know."""
    from ddlflow.api import run_pipeline, summary_json

    with stdout_for_result(as_json):
        result = run_pipeline(pipeline, on=on, set=changes or [], fresh=fresh)
    if as_json:
        print_json(summary_json(result))
    else:
        show_run(result)


@app.command()
def check(
    pipeline: PipelineName, on: On = "local", changes: Changes = None, as_json: Json = False
) -> None:
    """Look at everything that can be known before a run; write nothing."""
    from dataclasses import asdict

    from ddlflow.api import check as look

    with stdout_for_result(as_json):
        findings = look(pipeline, on, changes or [])
    bad = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"ok": bad == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        show_findings(findings)
        wrong = "1 error" if bad == 1 else f"{bad} errors"
        site = [] if on == "local" else ["--on", on]
        given = map(redacted_change, changes or [])
        same = [pipeline, *site, *(part for change in given for part in ("--set", change))]
        typer.echo(
            f"\n{wrong}: nothing was started and nothing written."
            if bad
            else f"\nAll is well. Next: ddlflow run {shlex.join(same)}"
        )
    raise typer.Exit(2 if bad else 0)


@app.command()
def infer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_URI", help="runs:/ID/model, models:/NAME@ALIAS, or a folder."
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="File, glob, folder or URL, relative to here or data_root; or a table, as "
            "'{spark: db.events, key: [id]}'."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")],
    on: On = "local",
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A column to keep; repeat for more.")
    ] = None,
    changes: Changes = None,
    fresh: Fresh = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Predict every row of a source with a trained model, into Parquet."""
    from ddlflow.api import predict

    with stdout_for_result(as_json):
        result = predict(
            model,
            source,
            out=out,
            on=on,
            keys=key or [],
            set=changes or [],
            fresh=fresh,
            trust_code=trust_code,
        )
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{result['rows']:,} rows predicted into {result['predictions']}")
        typer.echo(f"Next: pandas.read_parquet({result['predictions']!r})")


@app.command()
def ui(on: On = "local", changes: Changes = None, as_json: Json = False) -> None:
    """Serve the MLflow and Prefect pages until Ctrl-C."""
    from ddlflow.api import ui as serve

    def say(pages: Any) -> None:
        if as_json:
            print_json({"mlflow": pages.mlflow, "prefect": pages.prefect})
            sys.stdout.flush()
            return
        typer.echo(f"MLflow   {pages.mlflow}")
        if pages.prefect:
            typer.echo(f"Prefect  {pages.prefect}")
        typer.echo("Ctrl-C stops both.")

    serve(on, changes or [], say=say)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")], as_json: Json = False
) -> None:
    """Lay out a project of your own: flows/, pipelines/, conf/."""
    from ddlflow.api import init as lay_out

    files = lay_out(folder)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in files]})
        return
    for path in files:
        typer.echo(path)
    typer.echo(f"\nNext: cd {folder} && ddlflow run quickstart")


@data.command()
def collider(
    rows: Rows,
    out: Out,
    seed: Seed = 1,
    on: On = "local",
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Make HIGGS-like collision events; the same bytes on any number of workers."""
    _make("collider", rows, out, seed, on, changes, as_json)


@data.command()
def particles(
    rows: Rows,
    out: Out,
    seed: Seed = 1,
    on: On = "local",
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Make tracks of five kinds of particles, with categories; the same bytes as well."""
    _make("particles", rows, out, seed, on, changes, as_json)


def _make(
    use: "MadeName",
    rows: int,
    out: Path,
    seed: int,
    on: str,
    changes: list[str] | None,
    as_json: bool,
) -> None:
    from ddlflow.api import make

    with stdout_for_result(as_json):
        made = make(use, rows, out=out, seed=seed, on=on, set=changes or [])
    if as_json:
        print_json(made)
    else:
        files = "1 file" if made["files"] == 1 else f"{made['files']:,} files"
        typer.echo(f"{made['rows']:,} rows in {files} under {out}")


@data.command()
def higgs(out: Out, as_json: Json = False) -> None:
    """Fetch UCI's HIGGS (2.8 GB, 11 M events), check it, and turn it into Parquet."""
    from ddlflow.api import fetch_higgs

    with stdout_for_result(as_json):
        files = fetch_higgs(out)
    if as_json:
        print_json({"out": str(out), "files": [str(path) for path in files]})
        return
    for path in files:
        typer.echo(path)
    typer.echo("Next: ddlflow run higgs")


def main() -> None:
    """The command line: errors as one line each, exit status by their kind."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = [argument for argument in arguments if argument != "--debug"]
        os.environ["DDLFLOW_DEBUG"] = "1"
        logging.basicConfig(level=logging.INFO)
    try:
        # An int where a command raises typer.Exit.
        status = app(arguments, prog_name="ddlflow", standalone_mode=False)
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("DDLFLOW_DEBUG"):
            traceback.print_exc()
        status = say_error(error)
    sys.exit(status if isinstance(status, int) else 0)


def command() -> None:
    """`main` as a process of its own, which ends at once when it is done."""
    status: object = 1
    # Registered first, it is called last.
    atexit.register(lambda: _leave(status))
    try:
        main()
    except SystemExit as left:
        status = left.code
        raise


def _leave(status: object) -> None:
    """Ends the process as it is: to take thousands of modules apart costs 2 s after a run."""
    if not isinstance(status, int | None):
        return  # a text, which the interpreter is about to say
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # who read it has gone: the interpreter has its own way with that
        return
    os._exit(status or 0)
