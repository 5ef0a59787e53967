"""Options that several commands have."""

from typing import Annotated

import typer

PipelineName = Annotated[str, typer.Argument(help="A name in pipelines/, a YAML file or a folder.")]
On = Annotated[str, typer.Option("--on", help="The site: a name in conf/, or a YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, such as train.epochs=3."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python code that it brings, if it does.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do again what was done before.")]
