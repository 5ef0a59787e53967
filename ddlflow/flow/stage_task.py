"""A stage as a Prefect task of the flow run that is under way."""

from collections.abc import Callable
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from ddlflow.runs.finished import Stage, Value
from ddlflow.spec.given import called


def run_stage(stage: Callable[..., Stage[Value]], *inputs: Any) -> Stage[Value]:
    """Runs a stage as a Prefect task that is named after it; one whose work stands is Cached."""

    # mypy does not follow Prefect's types
    @task(  # type: ignore[untyped-decorator]
        name=stage.__name__, cache_policy=NO_CACHE, persist_result=False
    )
    def run() -> State[Stage[Value]]:
        done = stage(*inputs)
        return Completed(name="Cached" if done.cached else "Completed", data=done)

    done: Stage[Value] = run(return_state=True).result()
    return done


def flow_run_name() -> str:
    """What Prefect calls the flow run that is under way: ``higgs on local``."""
    parameters = runtime.flow_run.parameters
    return f"{called(parameters['pipeline'])} on {called(parameters.get('on', 'local'))}"
