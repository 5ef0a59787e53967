"""What tells that a table of Spark's holds the rows that it held: its version, or its files.

It is asked of Spark's plan, which a session of this process alone shows. Where any part of a plan
is not known, nothing is said: then the table is exported anew.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import DataFrame, SparkSession

from ddlflow.spec.tables import SparkTable

MOST_FILES = 2_000  # asked one by one, a call of some ms each where they are not on this machine
# Another value each time, though Spark calls them deterministic; and functions of somebody's own,
# of which a plan shows the name alone (Python's with a number behind it).
_UNKNOWN = re.compile(
    r"\b(?:current_\w+|now|localtimestamp|unix_timestamp|session_user|user|UDF)\(|\)#\d"
)
_NUMBERS = re.compile(r"#\d+L?")  # of a plan's columns: others each time
_LISTED = "org.apache.spark.sql.execution.datasources."  # whose file lists are all that is read


def state_of(session: SparkSession, frame: DataFrame, table: SparkTable) -> str:
    """A text that is another one where the rows may be others; empty where that is not known."""
    plan = getattr(frame, "_jdf", None)
    if plan is None:  # Spark Connect
        return ""
    try:
        analyzed = plan.queryExecution().analyzed()
        if not analyzed.deterministic() or not analyzed.subqueriesAll().isEmpty():
            return ""
        said = analyzed.toString()
        if _UNKNOWN.search(said):
            return ""
        leaves = analyzed.collectLeaves()
        states = [_of_leaf(session, leaves.apply(k)) for k in range(leaves.size())]
    except Exception:  # of Py4J: a version of Spark, or of a reader, that has other words for it
        return ""
    if not states or not all(states):
        return ""
    # A view of the same name may be another one.
    states.append(f"plan {hashlib.sha256(_NUMBERS.sub('#', said).encode()).hexdigest()}")
    return "; ".join(states)


def _of_leaf(session: SparkSession, leaf: Any) -> str:
    """The state of one table that a plan reads."""
    kind = leaf.getClass().getSimpleName()
    if kind.startswith("DataSourceV2"):
        return _of_iceberg(leaf)
    if kind != "LogicalRelation" or not _has_method(leaf.relation(), "location"):
        return ""
    location = leaf.relation().location()
    if _has_method(location, "deltaLog"):
        return _of_delta(location)
    if not location.getClass().getName().startswith(_LISTED):
        return ""
    files = sorted(location.inputFiles())
    if not files or len(files) > MOST_FILES:
        return ""
    digest = hashlib.sha256()
    for line in _stamps(session, files):
        digest.update(line.encode())
    return f"{len(files)} files {digest.hexdigest()}"


def _has_method(value: Any, name: str) -> bool:
    """Whether a Java object has a method."""
    return any(method.getName() == name for method in value.getClass().getMethods())


def _of_delta(location: Any) -> str:
    """Of a Delta table: its id and version, as its log has them."""
    return f"delta {location.metadata().id()} version {location.version()}"


def _of_iceberg(leaf: Any) -> str:
    """Of an Iceberg table: its id and snapshot; of other catalogs' tables nothing is known."""
    table = leaf.table()
    if "iceberg" not in table.getClass().getName():
        return ""
    own = table.table()
    snapshot = table.snapshotId() or own.currentSnapshot().snapshotId()
    return f"iceberg {own.uuid()} snapshot {snapshot}"


def _stamps(session: SparkSession, files: list[str]) -> Iterator[str]:
    """Name, size and time of change of each file, a line each."""
    for name in files:
        parts = urlsplit(name)
        if parts.scheme == "file":
            found = Path(unquote(parts.path)).stat()
            yield f"{name} {found.st_size} {found.st_mtime_ns}\n"
        else:
            java: Any = session.sparkContext._jvm
            path = java.org.apache.hadoop.fs.Path(name)
            conf = session.sparkContext._jsc.hadoopConfiguration()
            status = path.getFileSystem(conf).getFileStatus(path)
            yield f"{name} {status.getLen()} {status.getModificationTime()}\n"
