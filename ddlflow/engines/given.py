"""A Spark session that the user's own code has: the engine of a call, in place of one we start."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Of this call, through Prefect and all: a flow is given plain values alone.
_session: ContextVar[Any] = ContextVar("ddlflow_spark_session", default=None)


@contextmanager
def using(session: Any) -> Iterator[None]:
    """Let engines that are opened in this block use a session; None: as the site says."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def given() -> Any:
    """The session to use, or None."""
    return _session.get()
