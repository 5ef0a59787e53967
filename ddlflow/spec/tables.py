"""Sources that are tables of a cluster framework: what Spark or Dask reads, and what is made of it.

Such a table is exported by the framework's own workers to the storage, and read from there.
"""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from ddlflow.errors import SpecError
from ddlflow.redact import is_secret_key, redacted_text
from ddlflow.spec.section import USER_CODE, Section

_NAME = re.compile(r"(?:`[^`]+`|[^\s`.]+)(?:\.(?:`[^`]+`|[^\s`.]+))*")  # db.events, delta.`/lake/x`
_QUERY = re.compile(r"\s*(?:\(|(?:select|with|from|table|values)\b|--|/\*)", re.IGNORECASE)
_SHOWN = 60  # characters of a query in a message

Code = Annotated[str, Field(pattern=USER_CODE)]


class FromEnvironment(Section):
    """A value that stands in an environment variable of the command, not in the file."""

    env: Annotated[str, Field(min_length=1)]


def _option_kind(value: Any) -> str:
    return "an environment variable" if isinstance(value, dict | FromEnvironment) else "a value"


Option = Annotated[
    Annotated[str | bool | int | float, Tag("a value")]
    | Annotated[FromEnvironment, Tag("an environment variable")],
    Discriminator(_option_kind),
]


class SparkReader(Section):
    """``spark.read.format(FORMAT).options(OPTIONS).load(PATH)``."""

    format: Annotated[str, Field(min_length=1)]  # delta, iceberg, parquet, orc, jdbc, avro, ...
    path: str | None = None  # relative to the site's data_root, absolute, a URL, or Spark's own
    options: dict[str, Option] = {}  # versionAsOf: 12; password: {env: DB_PASSWORD}

    @field_validator("options")
    @classmethod
    def _secrets_are_texts(cls, options: dict[str, Any]) -> dict[str, Any]:
        """A password of digits is none to be shown either."""
        return {
            name: str(value) if is_secret_key(name) and isinstance(value, int | float) else value
            for name, value in options.items()
        }


def _query(text: str) -> str:
    """Refuses what is neither the name of a table nor a query: Spark would carry it out."""
    if not _NAME.fullmatch(text.strip()) and not _QUERY.match(text):
        raise ValueError(
            f"{text!r:.60} is neither the name of a table nor a query (SELECT ..., WITH ...)"
        )
    return text.strip()


def _spark_kind(value: Any) -> str:
    return "a reader" if isinstance(value, dict | SparkReader) else "a text"


class SparkTable(Section):
    """A table or view that Spark knows, a query in its SQL, or what one of its readers reads."""

    spark: Annotated[
        Annotated[str, AfterValidator(_query), Tag("a text")]
        | Annotated[SparkReader, Tag("a reader")],
        Discriminator(_spark_kind),
    ]
    transform: Code | None = None  # module:function, from a DataFrame to a DataFrame
    key: list[str] = []  # columns that tell the rows apart, by which they are sorted

    @property
    def engine(self) -> Literal["spark", "dask"]:
        return "spark"

    @property
    def is_query(self) -> bool:
        """Whether it is a query, and no name of a table."""
        return isinstance(self.spark, str) and not _NAME.fullmatch(self.spark)

    @property
    def shown(self) -> str:
        """In a message: what is read, in a few words and without secrets."""
        if isinstance(self.spark, SparkReader):
            options = self.spark.options
            where = self.spark.path or options.get("dbtable") or options.get("query") or "a table"
            return redacted_text(f"{where} ({self.spark.format}, read by Spark)")
        text = " ".join(self.spark.split())
        if not self.is_query:
            return f"Spark's table {text}"
        return redacted_text(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


class DaskTable(Section):
    """What a function makes: a Dask DataFrame, or a list of delayed frames."""

    dask: Code  # module:function, called without arguments
    transform: Code | None = None  # module:function, of what the first one makes to the same
    key: list[str] = []  # columns that tell the rows apart, by which they are sorted

    @property
    def engine(self) -> Literal["spark", "dask"]:
        return "dask"

    @property
    def shown(self) -> str:
        """In a message."""
        return f"Dask's table {self.dask}"


Table = SparkTable | DaskTable


def source_kind(value: Any) -> str:
    """Of a source in a file, which kind it is: the tag of a union's member."""
    found = [kind for kind in ("spark", "dask") if isinstance(value, dict) and kind in value]
    if isinstance(value, Table):
        found = [value.engine]
    if found:
        return f"{found[0]} table"
    return "made" if isinstance(value, dict | Section) else "a place"


AnyTable = Annotated[SparkTable, Tag("spark table")] | Annotated[DaskTable, Tag("dask table")]


def _place_or_table(value: Any) -> str:
    """As `source_kind`, where nothing can be made: other keys are those of a table, and wrong."""
    kind = source_kind(value)
    return "spark table" if kind == "made" else kind


# A place (a file, glob, folder or fsspec URL), or a table.
PlaceOrTable = Annotated[Annotated[str, Tag("a place")] | AnyTable, Discriminator(_place_or_table)]


def options_of(reader: SparkReader, key: str) -> dict[str, str]:
    """A reader's options as Spark takes them, those from the environment with their values.

    Args:
        reader: whose options they are.
        key: of it in the pipeline, for messages.

    Raises:
        SpecError: an environment variable is not set.
    """
    found = {}
    for name, value in reader.options.items():
        if isinstance(value, FromEnvironment):
            if value.env not in os.environ:
                raise SpecError(
                    f"{key}.spark.options.{name} is in the environment variable {value.env}, which "
                    "is not set. Set it where you start the command."
                )
            found[name] = os.environ[value.env]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def code_of(table: object, key: str) -> dict[str, str]:
    """Where a source names user code, and the name: ``{"data.source.transform": "t:clean"}``."""
    if not isinstance(table, Table):
        return {}
    found = {f"{key}.dask": table.dask} if isinstance(table, DaskTable) else {}
    if table.transform is not None:
        found[f"{key}.transform"] = table.transform
    return found
