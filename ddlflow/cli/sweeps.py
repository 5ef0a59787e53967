"""Commands that train many times: search and cross-validate."""

from typing import Literal

import typer

from ddlflow.cli.options import Changes, Fresh, Json, On, PipelineName
from ddlflow.cli.output import print_json, show_sweep, stdout_for_result


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    app.command()(search)
    app.command("cross-validate")(cross_validate)


def search(
    pipeline: PipelineName,
    on: On = "local",
    changes: Changes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Try the settings of the pipeline's search section, and name the best."""
    _sweep("search", pipeline, on, changes or [], fresh=fresh, as_json=as_json)


def cross_validate(
    pipeline: PipelineName,
    on: On = "local",
    changes: Changes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train on each fold of the pipeline's cv section, and score the rows held out."""
    _sweep("cross_validate", pipeline, on, changes or [], fresh=fresh, as_json=as_json)


def _sweep(
    only: Literal["search", "cross_validate"],
    pipeline: str,
    on: str,
    changes: list[str],
    *,
    fresh: bool,
    as_json: bool,
) -> None:
    from ddlflow.api import run_sweep, summary_json

    with stdout_for_result(as_json):
        result = run_sweep(only, pipeline, on=on, set=changes, fresh=fresh)
    if as_json:
        print_json(summary_json(result))
    else:
        show_sweep(result, pipeline)
