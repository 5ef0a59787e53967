"""The command line. Heavy packages are imported by the command that needs them."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ddlflow.errors import DdlflowError

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

PipelineName = Annotated[str, typer.Argument(help="A name in pipelines/, a YAML file or a folder.")]
On = Annotated[str, typer.Option("--on", help="The site: a name in conf/, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, such as train.epochs=3."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do again what was done before.")]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["DDLFLOW_DEBUG"] = "1"
        logging.basicConfig(level=logging.INFO)


@app.command()
def run(
    pipeline: PipelineName,
    on: On = "local",
    changes: Changes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: prepare, train, evaluate, infer; tracked in MLflow, shown in Prefect."""
    from ddlflow.commands import run as run_pipeline

    with _stdout_for_result(as_json):
        result = run_pipeline(pipeline, on=on, set=changes or [], fresh=fresh)
    if as_json:
        _print_json(result)
    else:
        _show_run(result)


@app.command()
def check(
    pipeline: PipelineName, on: On = "local", changes: Changes = None, as_json: Json = False
) -> None:
    """Look at everything that can be known before a run; write nothing."""
    from dataclasses import asdict

    from ddlflow.check import check as look
    from ddlflow.check import errors
    from ddlflow.spec.load import load

    with _stdout_for_result(as_json):
        findings = look(load(pipeline, on, changes or []))
    bad = errors(findings)
    if as_json:
        _print_json({"ok": bad == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        signs = {"ok": "ok   ", "note": "note ", "error": "ERROR"}
        for finding in findings:
            typer.echo(f"{signs[finding.level]} {finding.what}: {finding.text}")
        typer.echo(
            f"\n{bad} errors." if bad else f"\nAll is well. Next: ddlflow run {pipeline} --on {on}"
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
        str, typer.Argument(help="File, glob, folder or URL; relative to here or data_root.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")],
    on: On = "local",
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A column to keep; repeat for more.")
    ] = None,
    changes: Changes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Predict every row of a source with a trained model, into Parquet."""
    from ddlflow.commands import infer as infer_source

    with _stdout_for_result(as_json):
        result = infer_source(
            model, source, out=out, on=on, keys=key or [], set=changes or [], fresh=fresh
        )
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"{result['rows']:,} rows predicted into {result['predictions']}")
        typer.echo(f"Next: pandas.read_parquet({result['predictions']!r})")


@app.command()
def ui(on: On = "local", changes: Changes = None) -> None:
    """Serve the MLflow and Prefect pages until Ctrl-C."""
    from ddlflow.commands import site
    from ddlflow.tracking.servers import ui as serve

    def say(pages: Any) -> None:
        typer.echo(f"MLflow   {pages.mlflow}")
        if pages.prefect:
            typer.echo(f"Prefect  {pages.prefect}")
        typer.echo("Ctrl-C stops both.")

    serve(site(on, changes or []).tracking.uri, say=say)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Lay out a project of your own: flows/, pipelines/, conf/."""
    from ddlflow.project import lay_out

    for path in lay_out(folder):
        typer.echo(path)
    typer.echo(f"\nNext: cd {folder} && ddlflow run quickstart")


@data.command()
def collider(
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many events.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the Parquet files.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    on: On = "local",
    changes: Changes = None,
) -> None:
    """Make HIGGS-like collision events; the same bytes on any number of workers."""
    from ddlflow.commands import make_collider

    made = make_collider(rows, out=out, seed=seed, on=on, set=changes or [])
    typer.echo(f"{made['rows']:,} events in {made['files']} files under {out}")


@data.command()
def higgs(
    out: Annotated[Path, typer.Option("--out", help="Folder for the Parquet files.")],
) -> None:
    """Fetch UCI's HIGGS (2.8 GB, 11 M events), check it, and turn it into Parquet."""
    from ddlflow.commands import fetch_higgs

    for path in fetch_higgs(out):
        typer.echo(path)
    typer.echo("Next: ddlflow run higgs")


@contextlib.contextmanager
def _stdout_for_result(as_json: bool) -> Iterator[None]:
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


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value))


def _show_run(result: dict[str, Any]) -> None:
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


def main() -> None:
    """The entry point: errors as one line, exit status by their kind."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except DdlflowError as error:
        if debug:
            raise
        sys.stderr.write(f"ddlflow: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        status = getattr(error, "exit_status", None)  # Interrupted, without importing the session
        if status is None:
            raise
        sys.stderr.write(f"ddlflow: stopped by {error}. The same command goes on from there.\n")
        sys.exit(status)
