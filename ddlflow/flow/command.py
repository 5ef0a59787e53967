"""A command's flow run in Prefect: begun, and ended where its command ended without a word."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ddlflow.errors import DdlflowError
from ddlflow.flow.server import (
    PrefectServer,
    home,
    named_by_the_user,
    num_users,
    running_server,
    shared_server,
    wait_until_ready,
)
from ddlflow.flow.settings import settle_prefect
from ddlflow.runs.check.finding import Finding, counted
from ddlflow.runs.results import RunSummary, SweepSummary

_switching = threading.Lock()
_users: list[str] = []  # the server's address, once a flow that runs in this process
Flow = Callable[..., RunSummary | SweepSummary]  # of flows/pipeline.py


def prefect_place() -> str:
    """Which Prefect has the flow runs: a server's address, or the shared one's folder."""
    return named_by_the_user() or str(home())


@contextmanager
def prefect_server() -> Iterator[PrefectServer | None]:
    """The shared server for as long as the block lasts; None where the user named another.

    It starts while the block goes on, see `ready`.
    """
    with nullcontext() if named_by_the_user() else shared_server() as server:
        yield server


def prefect_page(server: PrefectServer | None) -> str | None:
    """The address of Prefect's pages, once they are there.

    Raises:
        DdlflowError: the server does not start.
    """
    if server is None:
        return (named_by_the_user() or "").rstrip("/").removesuffix("/api") or None
    return wait_until_ready(server).address


def prefect_findings() -> Iterator[Finding]:
    """What `ddlflow doctor` says of the shared server."""
    server = None if os.environ.get("PREFECT_API_URL") else running_server()
    if server is None:
        return
    pid, users = server.process.pid, num_users(server.folder)
    if server.answers:
        use = f"used by {counted(users, 'command')}" if users else "it ends by itself when idle"
        yield Finding("prefect", "ok", f"{server.address} serves (process {pid}); {use}.")
    else:
        text = (
            f"The server at {server.address} (process {pid}) does not answer: it starts, or hangs. "
            "The next run replaces it if it still does not."
        )
        yield Finding("prefect", "note", text)


@contextmanager
def ready(server: PrefectServer | None) -> Iterator[None]:
    """Waits for the server, and has this process's Prefect use it while the block lasts.

    Raises:
        DdlflowError: it does not start.
    """
    from prefect.context import refresh_global_settings_context

    own = None if server is None else wait_until_ready(server).api_url
    with _switching:
        # The variable is the whole process's: what a second thread finds there may be the first's.
        url = own or (_users[0] if _users else None)
        if url is not None:
            _users.append(url)
            os.environ["PREFECT_API_URL"] = url
            refresh_global_settings_context()
    try:
        yield
    finally:
        if url is not None:
            with _switching:
                _users.remove(url)
                if not _users:
                    del os.environ["PREFECT_API_URL"]
                    refresh_global_settings_context()


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
        DdlflowError: it ran on a shared server in another folder.
    """
    settle_prefect()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Crashed

    is_server = place.startswith(("http://", "https://"))
    if place and not is_server and place != str(home()):
        raise DdlflowError(f"it is kept elsewhere; set PREFECT_HOME={place}")
    named = place if is_server else None if place else named_by_the_user()
    own = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"command:{command}"]))
    with (
        nullcontext() if named else shared_server() as server,
        temporary_settings(
            {PREFECT_API_URL: wait_until_ready(server).api_url if server else named}
        ),
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
