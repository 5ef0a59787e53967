"""A command's flow run in Prefect: begun, and ended where its command ended without a word."""

import os
from collections.abc import Callable
from typing import Any

from ddlflow.errors import DdlflowError
from ddlflow.redact import keep_out_of_logs
from ddlflow.runs.results import RunSummary, SweepSummary

Flow = Callable[..., RunSummary | SweepSummary]  # of flows/pipeline.py


def settle_prefect() -> None:
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
    keep_out_of_logs()  # Prefect sends them to its server


def prefect_place() -> str:
    """Which Prefect has the flow runs: a server's address, or the embedded one's folder."""
    settle_prefect()
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    return PREFECT_API_URL.value() or str(PREFECT_HOME.value())


def run_flow(flow: Flow, command: str, /, **parameters: Any) -> RunSummary | SweepSummary:
    """Runs the flow, its run tagged with the command, so that `end_lost` finds it."""
    settle_prefect()
    from prefect import tags
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # A command's own record tells that it lives; the heartbeat's thread would be waited for.
    alone = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with alone, tags(f"command:{command}"):
        return flow(**parameters)


def end_lost(command: str, place: str, message: str) -> int:
    """Sets the flow run and the task runs of a command that ended without a word to Crashed.

    Args:
        command: its name.
        place: where it ran, as `prefect_place` says it; empty if that is not known: here.
        message: of the new states.

    Returns:
        How many flow runs it was: 0 if the command was lost before its flow began, or after.

    Raises:
        DdlflowError: it ran on an embedded server in another folder.
    """
    settle_prefect()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
    from prefect.states import Crashed

    is_server = place.startswith(("http://", "https://"))
    if place and not is_server and place != str(PREFECT_HOME.value()):
        raise DdlflowError(f"it is kept elsewhere; set PREFECT_HOME={place}")
    there = PREFECT_API_URL.value() if not place else place if is_server else None
    own = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"command:{command}"]))
    with (
        temporary_settings({PREFECT_API_URL: there}),
        get_client(sync_client=True) as client,
    ):
        for task_run in client.read_task_runs(flow_run_filter=own, task_run_filter=_begun()):
            client.set_task_run_state(task_run.id, Crashed(message=message), force=True)
        found = client.read_flow_runs(flow_run_filter=own)
        open_runs = [run for run in found if run.state is None or not run.state.is_final()]
        for flow_run in open_runs:
            client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
    return len(open_runs)


def _begun() -> Any:
    """Prefect's filter of task runs that have not ended."""
    from prefect.client.schemas.filters import (
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType

    types = [state for state in StateType if state not in TERMINAL_STATES]
    return TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=types)))


def _debug() -> bool:
    return bool(os.environ.get("DDLFLOW_DEBUG"))
