"""What Spark says of a table that it cannot read, in one line with what to do."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ddlflow.engines.spark_errors import reason_of, short
from ddlflow.errors import DataError, DdlflowError, EngineError, SpecError
from ddlflow.redact import GONE, is_secret_key, redacted_text
from ddlflow.spec.tables import SparkReader, SparkTable

_CONDITION = re.compile(r"\[([A-Z][A-Z0-9_.]+)\]\s*")
_JAVA = re.compile(r"^Py4JJavaError: An error occurred while calling [\w.]+\s*:\s*")
_OURS = re.compile(r"ddlflow\.errors\.DataError: (.+)")
_JAR = {
    "delta": "io.delta:delta-spark_2.13",
    "iceberg": "org.apache.iceberg:iceberg-spark-runtime",
    "avro": "org.apache.spark:spark-avro_2.13",
}


class SparkTableErrors:
    """Turns what Spark raises about one table into one line."""

    def __init__(self, at: str, table: SparkTable, options: Mapping[str, str]) -> None:
        self._at, self._table = at, table
        self._secrets = [value for name, value in options.items() if value and is_secret_key(name)]

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Raises one line for what is raised inside.

        Raises:
            SpecError: the table, query, reader or driver is not there.
            DataError: its rows cannot be read.
            EngineError: Spark failed.
        """
        try:
            yield
        except DdlflowError:
            raise
        except Exception as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> DdlflowError:
        said = _JAVA.sub("", f"{type(error).__name__}: {error}")
        if "JDBC" in said and (cause := _first_cause(error)):
            said = f"java.sql.SQLException: {cause}"
        ours = _OURS.search(said)
        if ours is not None:
            return DataError(self._clean(ours[1]))
        known = self._missing(said)
        if known is not None:
            return SpecError(self._clean(f"{self._at}: {known}"))
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if "AnalysisException" in kinds:  # a ParseException is one
            return SpecError(self._clean(f"{self._at} is {self._table.shown}: {_sentence(said)}"))
        condition = _CONDITION.search(said)
        if (condition is not None or "java.sql." in said) and "No module named" not in said:
            text = _sentence(said[condition.start() :] if condition else said)
            return DataError(self._clean(f"{self._at}: {self._table.shown}: {text}"))
        return EngineError(self._clean(f"{self._at}: {self._table.shown}: {reason_of(error)}"))

    def _missing(self, said: str) -> str | None:
        """What a message means that speaks of a class or jar that is not there."""
        reader = self._table.spark
        kind = reader.format if isinstance(reader, SparkReader) else ""
        if "DATA_SOURCE_NOT_FOUND" in said or "Failed to find the data source" in said:
            jar = f" ({_JAR[kind]})" if kind in _JAR else ""
            return (
                f"Spark has no reader for format {kind or 'of this table'}. Put its package{jar} "
                "into spark.jars.packages, or its jar into spark.jars, in engine.conf; or correct "
                "the format."
            )
        driver = re.search(r"ClassNotFoundException: ([\w.$]+)", said)
        if "No suitable driver" in said or (kind == "jdbc" and driver is not None):
            named = f" {driver[1]}" if driver else ""
            return (
                f"Spark has no JDBC driver{named} for this url. Put its package into "
                "spark.jars.packages, or its jar into spark.jars, in engine.conf; or set "
                f"{self._at}.spark.options.driver."
            )
        return None

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        return redacted_text(text)


def _first_cause(error: BaseException) -> str:
    """What the first cause of a Java exception says, as a database does; empty over Connect."""
    cause: Any = getattr(error, "_origin", None) or getattr(error, "java_exception", None)
    said = ""
    with contextlib.suppress(Exception):  # of Py4J: Spark itself may be gone
        while cause is not None:
            said, cause = cause.getMessage() or said, cause.getCause()
    return " ".join(said.split())


def _sentence(said: str) -> str:
    """The parser's or analyzer's own line: less its error class, its plan and the query."""
    line = next((line for line in said.splitlines() if _CONDITION.search(line)), said)
    line = line[match.end() :] if (match := _CONDITION.search(line)) else short(line)
    place = re.search(r"\(?\bline (\d+),? pos (\d+)\)?", said)
    line = re.split(r"\s*SQLSTATE: \w+", line)[0].rstrip(" ;.")
    where = f" (line {place[1]}, position {place[2]})" if place else ""
    return f"{line[:300]}{where}."
