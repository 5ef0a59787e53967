"""The project's flow: flows/pipeline.py, loaded by its file as Prefect itself would load it.

A project's copy of it may be older than this ddlflow: it says which names of ``ddlflow.flow_api``
it was written for, and that is looked at before it is run.
"""

import ast
import importlib.util
from pathlib import Path
from typing import Any

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.flow.command import Flow
from ddlflow.flow.settings import settle_prefect
from ddlflow.spec.load import project_folder, shown

FILE = ("flows", "pipeline.py")
FLOW_API = 2  # raised when flows/pipeline.py of earlier projects cannot be run any more
VERSION_NAME = "FLOW_API"


def load_flow() -> Flow:
    """Imports the flow, and Prefect with it, which takes some seconds.

    Raises:
        SpecError: the file is missing, or was written for another ddlflow.
    """
    settle_prefect()
    path = project_folder(FILE[0]).joinpath(*FILE)
    if not path.is_file():
        raise SpecError(f"{shown(path)} is missing. `ddlflow init DIR` lays out a project with it.")
    _check_version(path)
    spec = importlib.util.spec_from_file_location("ddlflow_project_flow", path)
    if spec is None or spec.loader is None:
        raise DdlflowError(f"{path} cannot be loaded as Python.")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flow: Flow | None = getattr(module, "pipeline", None)
    if flow is None:
        raise SpecError(f"{shown(path)} holds no flow `pipeline`. {_how_to_mend(path)}")
    return flow


def _check_version(path: Path) -> None:
    """Raises where the file was written for other names than ``ddlflow.flow_api`` has.

    Raises:
        SpecError: with what to do.
    """
    found = _version_of(path)
    if found is None:
        raise SpecError(
            f"{shown(path)} was written for an earlier ddlflow: it says no {VERSION_NAME} (this "
            f"ddlflow has {FLOW_API}). {_how_to_mend(path)}"
        )
    if found != FLOW_API:
        age = "an earlier" if found < FLOW_API else "a later"
        raise SpecError(
            f"{shown(path)} was written for {age} ddlflow: its {VERSION_NAME} is {found}, and "
            f"this ddlflow has {FLOW_API}. {_how_to_mend(path)}"
        )


def _version_of(path: Path) -> int | None:
    """``FLOW_API = 2`` at the top of the file, read without running it."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        raise SpecError(
            f"{shown(path)}:{error.lineno}: this is no Python ({error.msg}). Correct it."
        ) from None
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Constant(value=int(version))
            ) if name == VERSION_NAME:
                return version
    return None


def _how_to_mend(path: Path) -> str:
    return (
        "`ddlflow init NEW` lays out a project with today's: copy NEW/flows/pipeline.py to "
        f"{shown(path)}, and put changes of your own into it."
    )
