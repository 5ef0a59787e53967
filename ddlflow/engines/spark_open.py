"""Open engine spark, where PySpark may not be installed."""

import importlib.metadata
import sys
from typing import TYPE_CHECKING

from ddlflow.engines.given import given
from ddlflow.engines.spark_needs import need_spark
from ddlflow.errors import EngineError
from ddlflow.spec.site import EngineSection

if TYPE_CHECKING:
    from ddlflow.engines.spark import SparkEngine


def open_spark(engine: EngineSection, *, slots: int, threads: int) -> "SparkEngine":
    """Open a session, or take the given one, and see that its workers can work for us.

    Args:
        engine: the site's section.
        slots: workers of a session on this machine.
        threads: of one rank.

    Raises:
        SpecError, EngineError: see `ddlflow.engines.open_engine`.
    """
    session = given()
    if session is None:
        need_spark(engine)
    from ddlflow.engines.spark import SparkEngine
    from ddlflow.engines.spark_session import given_session, own_session, session_at

    if session is not None:
        opened = given_session(session)
    elif engine.address is None:
        opened = own_session(slots, engine)
    else:
        opened = session_at(engine, threads)
    try:
        found = opened.slots()
        wanted = None if engine.workers == "auto" else engine.workers
        opened_engine = SparkEngine(
            opened,
            slots=min(wanted or found, found) if session is not None else wanted or found,
            may_grow=wanted is None and not opened.is_here,
            patience_s=engine.start_timeout_s,
        )
    except BaseException:
        opened.close()
        raise
    if not opened.is_here:
        try:
            _check_versions(opened_engine.ask(_versions_here))
        except BaseException:
            opened_engine.close()
            raise
    return opened_engine


def _check_versions(workers: list[dict[str, str]]) -> None:
    """Raises EngineError where a worker has another version of what code and data travel by."""
    ours = _versions_here()
    for theirs in workers:
        for package, version in ours.items():
            if theirs[package] != version:
                raise EngineError(
                    f"A Spark executor has {package} {theirs[package]}, this side has {package} "
                    f"{version}. Install the same versions on both."
                )


def _versions_here() -> dict[str, str]:
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ddlflow": importlib.metadata.version("ddlflow"),
    }
