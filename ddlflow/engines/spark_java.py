"""The Java process of a classic Spark session: started once in a process, told of in one line."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway

from ddlflow.engines.spark_errors import reason_of
from ddlflow.engines.spark_needs import JAVA
from ddlflow.errors import EngineError

HERE = "127.0.0.1"
_LOG_CHARACTERS = 300


def start_context(conf: Mapping[str, str]) -> tuple[SparkContext, Path]:
    """A context; what its Java process writes goes to a file, in the folder returned."""
    running = running_context()
    if running is not None:
        raise EngineError(
            f"A Spark session at {running.master} runs in this process already, and there can be "
            "one. Give it to ddlflow.run (spark=session), or stop it."
        )
    log = Path(tempfile.mkdtemp(prefix="ddlflow-spark-"))
    settings_ = SparkConf(loadDefaults=False).setAll(list(conf.items()))
    python = conf.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON") or sys.executable
    environment = {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": sys.executable}
    if conf.get("spark.driver.host", "").startswith("127."):
        environment["SPARK_LOCAL_IP"] = HERE
    with or_close(log), _own_signals(), _variables(environment):
        try:
            if SparkContext._gateway is None:
                with (log / "java.log").open("wb") as file:
                    gateway = launch_gateway(  # type: ignore[no-untyped-call]
                        settings_, {"stdout": file, "stderr": file}
                    )
                SparkContext._ensure_initialized(gateway=gateway)
            context = SparkContext(conf=settings_)
        except Exception as error:
            said = _last_words(log / "java.log")
            raise EngineError(f"Spark did not start. {said or reason_of(error)}") from error
        # It would print a traceback as the Java process dies; that is told in one line.
        context._accumulatorServer.handle_error = lambda *_: None  # type: ignore[method-assign]
        return context, log


def running_context() -> SparkContext | None:
    """The context of this process whose Java process runs, if there is one.

    One whose Java process has died is forgotten, so that another one can be started.
    """
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # what it logs we tell in one line
    jvm = SparkContext._jvm
    try:
        if jvm is not None:
            jvm.java.lang.System.currentTimeMillis()
    except Exception:  # of sockets or Py4J
        process = getattr(SparkContext._gateway, "proc", None)
        if process is not None:
            process.kill()
            process.communicate()  # closes its input
        SparkContext._gateway = SparkContext._jvm = SparkContext._active_spark_context = None
    return SparkContext._active_spark_context


def stop_context(context: SparkContext, log: Path) -> None:
    """Ends the application; its Java process is kept for this process's next one."""
    with suppress(Exception):  # it may be gone
        context.stop()
    shutil.rmtree(log, ignore_errors=True)


@contextmanager
def or_close(log: Path, context: SparkContext | None = None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if context is not None:
            stop_context(context, log)
        shutil.rmtree(log, ignore_errors=True)
        raise


def _last_words(log: Path) -> str:
    """What the Java process said last of why it could not start; empty if nothing."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        if any("UnsupportedClassVersionError" in line for line in lines):
            return f"Its Java is too old: install Java {JAVA} or newer, and set JAVA_HOME to it."
        told = [line for line in lines if "Exception" in line or "rror" in line]
        if told:
            return told[0].strip()[:_LOG_CHARACTERS]
    return ""


@contextmanager
def _own_signals() -> Iterator[None]:
    """PySpark takes SIGINT for itself as a context starts; what Ctrl-C does is ours to say."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, before)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
