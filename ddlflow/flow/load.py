"""The project's flow: flows/pipeline.py, loaded by its file as Prefect itself would load it."""

import importlib.util
import os
from typing import Any, Protocol

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.redact import keep_out_of_logs
from ddlflow.spec.load import project_folder, shown

FILE = ("flows", "pipeline.py")
NAMES = ("pipeline", "run", "where", "end_lost")


class Flow(Protocol):
    """What flows/pipeline.py holds."""

    def run(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Runs the flow, its run tagged with the command that runs it."""
        ...

    def where(self) -> str:
        """Which Prefect has the flow runs: a server's address, or the embedded one's folder."""
        ...

    def end_lost(self, command: str, where: str, message: str) -> int:
        """Sets what a lost command left running to Crashed; returns how many flow runs it was."""
        ...


def load_flow() -> Flow:
    """Imports the flow, and Prefect with it, which takes some seconds.

    Raises:
        SpecError: the file is missing, or lacks a name.
    """
    _settle_prefect()
    keep_out_of_logs()  # Prefect sends them to its server
    path = project_folder(FILE[0]).joinpath(*FILE)
    if not path.is_file():
        raise SpecError(f"{shown(path)} is missing. `ddlflow init DIR` lays out a project with it.")
    spec = importlib.util.spec_from_file_location("ddlflow_project_flow", path)
    if spec is None or spec.loader is None:
        raise DdlflowError(f"{path} cannot be loaded as Python.")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in NAMES:
        if not hasattr(module, name):
            raise SpecError(
                f"{shown(path)} holds no `{name}`. `ddlflow init DIR` lays out a project whose "
                f"{FILE[1]} has it: take it over from there."
            )
    flow: Flow = module
    return flow


def _settle_prefect() -> None:
    """Settings that Prefect reads when it is imported; what the user has set stays."""
    calm = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Its console lines would stand between ours; its pages and files keep theirs.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING" if _debug() else "CRITICAL",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # Its own 20 s are too few for the first start on a small or busy machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    for name, value in calm.items():
        os.environ.setdefault(name, value)


def _debug() -> bool:
    return bool(os.environ.get("DDLFLOW_DEBUG"))
