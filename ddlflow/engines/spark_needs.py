"""What engine spark needs of this machine; asked before anything starts, without PySpark."""

import importlib.util
import os
import shutil
from pathlib import Path

from ddlflow.errors import EngineError
from ddlflow.spec.site import EngineSection

JAVA = 17


def need_spark(engine: EngineSection) -> None:
    """See that there is PySpark, and Java where Spark's driver is to be a process of ours.

    Raises:
        EngineError: with what to install.
    """
    if importlib.util.find_spec("pyspark") is None:
        raise EngineError(
            "engine.use is spark, and PySpark is not installed. Install it with `pip install "
            "'ddlflow[spark]'`, or set engine.use: dask."
        )
    if (engine.address or "").startswith("sc://") or "PYSPARK_GATEWAY_PORT" in os.environ:
        return
    home = os.environ.get("JAVA_HOME")
    if home and not (Path(home) / "bin" / "java").exists():
        raise EngineError(f"JAVA_HOME is {home}, which holds no bin/java. Correct or unset it.")
    if not home and shutil.which("java") is None:
        raise EngineError(
            f"Spark needs Java {JAVA} or newer, and there is none on this machine. Install it "
            f"(apt install openjdk-{JAVA}-jre-headless), set JAVA_HOME to where it is, or set "
            "engine.use: dask."
        )
