"""What Spark says when a job fails, in one line with what to do."""

import importlib.metadata
import re

_PACKAGE = re.compile(r"(?:ModuleNotFoundError: )?No module named '?([\w.]+)")
_PYTHON = re.compile(r"has different version:? ([\d.]+) than that in driver:? ([\d.]+)")
_OURS = re.compile(r"ddlflow\.errors\.\w+: (.+)")
# The first that is found in what Spark says.
_KNOWN = {
    "SPARK-24819": (  # BarrierJobSlotsNumberCheckFailed
        "Spark has fewer cores than ranks were asked for at once. Set engine.workers lower, or "
        "give Spark more executors."
    ),
    "SPARK-24942": (  # BarrierJobRunWithDynamicAllocationException
        "Spark allocates executors as jobs come (spark.dynamicAllocation.enabled), and ranks have "
        "to start together. Set it to false in engine.conf, and spark.executor.instances."
    ),
    "SparkContext was shut down": "Spark was stopped while it worked. Run the command again.",
    "stopped SparkContext": "Spark was stopped. Run the command again.",
    "Answer from Java side is empty": (
        "Spark's driver (the Java process) has ended; out of memory? Set spark.driver.memory in "
        "engine.conf, and run the command again: it goes on from what was finished."
    ),
    "Connection refused": (
        "Spark's driver does not answer any more. Run the command again: it goes on from what was "
        "finished."
    ),
    "StatusCode.UNAVAILABLE": (
        "The Spark Connect server does not answer any more. Run the command again once it runs: it "
        "goes on from what was finished."
    ),
    "Python worker exited unexpectedly": (
        "Python processes on Spark's executors died again and again; out of memory? Set "
        "spark.executor.memoryOverhead in engine.conf, or engine.workers lower."
    ),
}
_MOST = 300  # characters of what has no better words


def reason_of(error: BaseException) -> str:
    """One line for an exception of PySpark, Py4J or gRPC."""
    said = f"{type(error).__name__}: {error}"
    package = _PACKAGE.search(said)
    if package is not None:
        version = importlib.metadata.version("ddlflow")
        return (
            f"Spark's executors have no Python package {package[1]}. Install ddlflow {version} for "
            "the Python that they run (spark.pyspark.python in engine.conf), or send an "
            "environment along by spark.archives."
        )
    python = _PYTHON.search(said)
    if python is not None:
        return (
            f"Spark's executors run Python {python[1]}, this side has {python[2]}. Set "
            "spark.pyspark.python in engine.conf to the same version there."
        )
    ours = _OURS.search(said)
    if ours is not None:
        return ours[1]
    for sign, text in _KNOWN.items():
        if sign in said:
            return text
    return f"Spark failed: {short(said)}"


def short(said: str) -> str:
    """The first line of a message, without Java's names of classes."""
    line = next((line for line in said.splitlines() if line.strip()), "")
    return re.sub(r"\b(?:[a-z]\w*\.){2,}(?=[A-Z])", "", line).strip()[:_MOST]
