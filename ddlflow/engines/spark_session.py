"""Open engine spark: a session of our own, at a master, over Spark Connect, or the user's."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

from pyspark import SparkContext
from pyspark.sql import SparkSession

from ddlflow.engines.spark_errors import reason_of
from ddlflow.engines.spark_java import HERE, or_close, running_context, start_context, stop_context
from ddlflow.engines.spark_jobs import Spark
from ddlflow.errors import EngineError, SpecError
from ddlflow.spec.site import EngineSection

_LOOK_S = 0.2
_CONNECT_S = 5.0
_CONNECT_MODE = "SPARK_CONNECT_MODE_ENABLED"  # PySpark sets it for the whole process
_SETTLE_S = 2.0  # executors of an application register one by one


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that works.

    Attributes:
        spark: what runs our jobs.
        session: for Spark's own tables; made when it is first asked for.
        label: what it is, for the user.
        host: this machine's address, as executors reach it.
        bind: the address to listen at, where that is another one.
        is_here: whether its workers are processes of this machine that see what we see.
        slots: tasks that it runs at once, asked anew.
        close: ends what was started for it.
    """

    spark: Spark
    session: Callable[[], SparkSession]
    label: str
    host: str
    bind: str | None
    is_here: bool
    slots: Callable[[], int]
    close: Callable[[], None]


def own_session(slots: int, engine: EngineSection) -> Opened:
    """Start Spark in a process of this machine that ends with this one.

    Raises:
        EngineError: no Java, or Spark did not start.
    """
    if running_context() is not None:
        return given_session(SparkSession.builder.getOrCreate())
    conf = {
        "spark.master": f"local[{slots},4]",  # a task is tried four times, as on a cluster
        "spark.driver.host": HERE,
        "spark.driver.bindAddress": HERE,
        "spark.ui.enabled": "false",
        # It starts in half the time, and what takes time later is Python's.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        # What this side can import its workers can.
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **settings(engine),
    }
    context, log = start_context(conf)
    with or_close(log):
        return Opened(
            context,
            cache(partial(SparkSession, context)),
            f"spark local session, {slots} workers{_page(context)}",
            HERE,
            None,
            is_here=True,
            slots=lambda: slots,
            close=lambda: stop_context(context, log),
        )


def session_at(engine: EngineSection, threads: int) -> Opened:
    """Start an application at a master, or a session on a Spark Connect server.

    Raises:
        SpecError: ``engine.conf`` keeps ranks from starting together.
        EngineError: no Java, nobody answers, or no executor comes in ``engine.start_timeout_s``.
    """
    address = str(engine.address)
    if address.startswith("sc://"):
        return _connect(address, engine)
    return _application(address, engine, threads)


def given_session(session: Any) -> Opened:
    """Use a session that the user has; it is left as it is, and open.

    Raises:
        SpecError: no SparkSession.
        EngineError: it was stopped, or allocates executors as jobs come.
    """
    if not hasattr(session, "mapInArrow") and not hasattr(session, "range"):
        raise SpecError(
            f"spark is a {type(session).__name__}; expected a SparkSession. Give the one that your "
            "notebook or job has, or leave it out."
        )
    try:
        conf = dict(session.conf.getAll)
        _refuse_growth(conf)
        if _is_connect(session):
            parts = urlsplit(conf.get("spark.remote") or "sc://" + _connect_host(session))
            host = _address_towards(parts.hostname or HERE, parts.port or 15002)
            label, is_here = "spark, the given session over Connect", False
        else:
            master = str(session.sparkContext.master)
            host, is_here = conf["spark.driver.host"], master.startswith("local")
            label = f"spark, the given session at {master}"
        spark = session if _is_connect(session) else session.sparkContext
        found = _slots(spark)
    except SpecError:
        raise
    except Exception as error:
        raise EngineError(f"The given Spark session cannot be used. {reason_of(error)}") from error
    bind = conf.get("spark.driver.bindAddress")
    return Opened(
        spark,
        lambda: session,
        f"{label}, {found} workers",
        host,
        bind,
        is_here,
        slots=lambda: _slots(spark),
        close=lambda: None,
    )


def address_of(session: Any) -> str | None:
    """Where a given session's workers are, as a site says it; None: on this machine.

    Raises:
        SpecError: it was stopped.
    """
    try:
        if _is_connect(session):
            return f"sc://{_connect_host(session)}"
        master = str(session.sparkContext.master)
    except Exception as error:
        raise SpecError(f"spark is a session that cannot be used. {reason_of(error)}") from error
    return None if master.startswith("local") else master


def settings(engine: EngineSection) -> dict[str, str]:
    """What every application of ours is started with; what the user sets comes last."""
    return {
        "spark.app.name": "ddlflow",
        "spark.ui.showConsoleProgress": "false",  # the terminal is ours
        "spark.log.level": "ERROR",
        # Ranks start together, and a stage that has no room for them must not wait for ever.
        "spark.dynamicAllocation.enabled": "false",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "5",
        "spark.speculation": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        **{name: _as_text(value) for name, value in engine.conf.items()},
    }


def _application(address: str, engine: EngineSection, threads: int) -> Opened:
    wanted = None if engine.workers == "auto" else engine.workers
    parts = urlsplit(address)
    conf = {"spark.master": address}
    if parts.scheme == "spark":
        conf["spark.driver.host"] = _own_address(address)
    if wanted is not None:
        conf["spark.cores.max"] = str(wanted * threads)
    if engine.threads != "auto":
        conf["spark.task.cpus"] = str(engine.threads)
    conf |= settings(engine)
    _refuse_growth(conf)
    context, log = start_context(conf)
    with or_close(log, context):
        instances = int(conf.get("spark.executor.instances", 0))
        cores = int(conf.get("spark.executor.cores", 0)) // int(conf.get("spark.task.cpus", 1))
        found = _wait(context, wanted or instances * cores, address, engine.start_timeout_s)
        return Opened(
            context,
            cache(partial(SparkSession, context)),
            f"spark at {address}, {wanted or found} of {found} workers{_page(context)}",
            str(context.getConf().get("spark.driver.host")),
            conf.get("spark.driver.bindAddress"),
            is_here=False,
            slots=lambda: _slots(context),
            close=lambda: stop_context(context, log),
        )


def _own_address(masters: str) -> str:
    """This machine's address as the first master that answers sees it: Spark itself tries long."""
    problem: OSError | None = None
    for master in masters.removeprefix("spark://").split(","):
        parts = urlsplit(f"//{master}")
        try:
            place = (parts.hostname or "", parts.port or 7077)
            with socket.create_connection(place, timeout=_CONNECT_S) as line:
                return str(line.getsockname()[0])
        except (OSError, ValueError) as error:
            problem = OSError(str(error))
    raise EngineError(
        f"No Spark master answers at {masters} ({problem}). Start one there with start-master.sh, "
        "or set engine.address to where it is."
    )


def _connect(address: str, engine: EngineSection) -> Opened:
    parts = urlsplit(address)
    if not parts.hostname:
        raise SpecError(f"engine.address is {address}; expected sc://HOST:15002.")
    conf = {name: _as_text(value) for name, value in engine.conf.items()}
    bind = conf.pop("spark.driver.bindAddress", None)
    host = conf.pop("spark.driver.host", None)
    try:
        own = host or _address_towards(parts.hostname, parts.port or 15002)
        with socket.create_connection((parts.hostname, parts.port or 15002), timeout=_CONNECT_S):
            pass  # the client tries for a minute where nobody listens
        had_mode = _CONNECT_MODE in os.environ
        builder = SparkSession.builder.remote(address)
        for name, value in conf.items():
            builder = builder.config(name, value)
        session = builder.create()
    except OSError as error:
        raise EngineError(
            f"No Spark Connect server answers at {address} ({error}). Start one there with "
            "start-connect-server.sh, or set engine.address to where it is."
        ) from error
    except ImportError as error:
        raise EngineError(
            f"Spark Connect needs more packages ({error.name or error}). Install them with `pip "
            "install 'ddlflow[spark]'`."
        ) from error
    except Exception as error:
        raise EngineError(f"{address} cannot be used. {reason_of(error)}") from error
    try:
        _refuse_growth(dict(session.conf.getAll))
        found = _slots(session)
    except SpecError:
        _stop_connect(session, had_mode=had_mode)
        raise
    except Exception as error:
        _stop_connect(session, had_mode=had_mode)
        raise EngineError(f"{address} cannot be used. {reason_of(error)}") from error
    wanted = found if engine.workers == "auto" else engine.workers
    return Opened(
        session,
        lambda: session,
        f"spark connect at {address}, {wanted} of {found} workers",
        own,
        bind,
        is_here=False,
        slots=lambda: _slots(session),
        close=partial(_stop_connect, session, had_mode=had_mode),
    )


def _stop_connect(session: SparkSession, *, had_mode: bool) -> None:
    with suppress(Exception):  # the server may be gone
        session.stop()
    if not had_mode:  # else no session of another kind could be opened in this process
        os.environ.pop(_CONNECT_MODE, None)


def _page(context: SparkContext) -> str:
    return f", page {context.uiWebUrl}" if context.uiWebUrl else ""


def _wait(context: SparkContext, wanted: int, address: str, timeout_s: float) -> int:
    """Wait for executors; with ``wanted`` 0 until there are some and no more come."""
    give_up = time.monotonic() + timeout_s
    found, since = 0, time.monotonic()
    while True:
        now = time.monotonic()
        count = _slots(context)
        if count != found:
            found, since = count, now
        if (wanted and found >= wanted) or (not wanted and found and now - since > _SETTLE_S):
            return found
        if context._jsc.sc().isStopped():
            raise EngineError(
                f"The Spark master at {address} does not answer. Start it, or set engine.address "
                "to where it is."
            )
        if now > give_up:
            raise EngineError(
                f"{address} gave {found} of {wanted or 'any'} workers within {timeout_s:g} s "
                "(engine.start_timeout_s). Its cores may be taken by other applications, or the "
                "master does not answer: look at its page, or set engine.workers lower."
            )
        time.sleep(_LOOK_S)


def _slots(spark: Spark) -> int:
    """Tasks that run at once."""
    if isinstance(spark, SparkContext):
        scala = spark._jsc.sc()
        profile = scala.resourceProfileManager().defaultResourceProfile()
        return int(scala.maxNumConcurrentTasks(profile))  # what barrier stages are measured by
    # Over Connect nothing says it but how Spark cuts a range by default.
    from pyspark.sql.functions import spark_partition_id

    found = spark.range(1 << 20).select(spark_partition_id().alias("part")).distinct().count()
    return max(1, found // int(spark.conf.get("spark.task.cpus", "1") or 1))


def _is_connect(session: Any) -> bool:
    return type(session).__module__.startswith("pyspark.sql.connect")


def _connect_host(session: Any) -> str:
    return str(getattr(session.client, "host", HERE))


def _refuse_growth(conf: Mapping[str, str]) -> None:
    if conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise SpecError(
            "spark.dynamicAllocation.enabled is true, and ranks have to start together. Set it to "
            "false in engine.conf (and spark.executor.instances), or where the session is made."
        )


def _address_towards(host: str, port: int) -> str:
    """The address of this machine that reaches another one, without a word to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        try:
            towards.connect((host, port))
        except OSError as error:
            raise EngineError(
                f"{host} cannot be reached from here ({error}). Correct engine.address."
            ) from error
        return str(towards.getsockname()[0])


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
