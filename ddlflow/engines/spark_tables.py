"""Tables of Spark: planned in a session, written to the storage by its executors."""

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from ddlflow.engines.exporting import TableOrder, WritePart
from ddlflow.engines.spark_table_errors import SparkTableErrors
from ddlflow.engines.spark_table_state import state_of
from ddlflow.errors import DataError, SpecError
from ddlflow.rank_protocol import JsonObject
from ddlflow.spec.tables import SparkReader, SparkTable, options_of

# What enters a table's rows beside its data: set while it is planned and read, then as before.
_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.debug.maxToStringFields": "100000",  # what tells a plan apart is told whole
}


@dataclass(frozen=True, slots=True)
class _Partition:
    """What `mapInArrow` calls in each task; importable by name, so that it travels as one."""

    write: WritePart

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        number = context.partitionId()
        told = [number, self.write(number, batches)]
        yield pa.RecordBatch.from_arrays([pa.array([json.dumps(told)])], names=["told"])


class SparkExport:
    """See `ddlflow.engines.exporting.TableExport`."""

    def __init__(self, session: SparkSession, order: TableOrder) -> None:
        """Plan a table of a session.

        Raises:
            SpecError: no such table or function, a query that Spark cannot read.
            DataError: two columns of one name, a key that is no column.
        """
        assert isinstance(order.table, SparkTable)
        self._session, self._order = session, order
        table, reader = order.table, order.table.spark
        options = options_of(reader, order.at) if isinstance(reader, SparkReader) else {}
        self._errors = SparkTableErrors(order.at, table, options)
        with self._planning():
            frame = self._read(table, options)
            if order.transform is not None:
                frame = order.transform(frame)
                if not isinstance(frame, DataFrame):
                    raise SpecError(
                        f"{order.at}.transform is {table.transform}, which gave a "
                        f"{type(frame).__name__}. Return a DataFrame of Spark."
                    )
            fields = frame.schema.fields  # Spark Connect plans here
            self.state = state_of(session, frame, table)
        names = [field.name for field in fields]
        _check_names(names, table, order.at)
        self.vectors = tuple(field.name for field in fields if _is_vector(field.dataType))
        self.schema = pa.schema([(field.name, _arrow_type(field.dataType)) for field in fields])
        nested = (field.name for field in self.schema if _is_left_out(field.type))
        self.left_out = tuple(nested)
        wanted = [_column(name) for name in names if name not in self.left_out]
        frame = frame.select(wanted) if self.left_out else frame
        self._frame = frame.orderBy([_column(name) for name in table.key]) if table.key else frame

    def write(self, write: WritePart) -> list[JsonObject]:
        """See `TableExport.write`."""
        tag = f"ddlflow-export-{uuid.uuid4().hex}"
        with self._planning():
            self._session.addTag(tag)
            try:
                rows = self._frame.mapInArrow(_Partition(write), "told string").collect()
            except BaseException:
                with contextlib.suppress(Exception):  # Spark itself may be gone
                    self._session.interruptTag(tag)
                raise
            finally:
                with contextlib.suppress(Exception):
                    self._session.removeTag(tag)
        told = sorted((json.loads(row.told) for row in rows), key=lambda one: int(one[0]))
        return [part for _, part in told]

    def _read(self, table: SparkTable, options: dict[str, str]) -> DataFrame:
        reader = table.spark
        if isinstance(reader, str):
            return self._session.sql(reader) if table.is_query else self._session.table(reader)
        found = self._session.read.format(reader.format).options(**options)
        if reader.path is None:
            return found.load()
        return found.load(_path(reader, self._order.data_root))

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        """Spark reads the table the same way in every session, and what it says is one line."""
        with contextlib.ExitStack() as undo:
            for name, value in _SETTINGS.items():
                undo.callback(_restore(self._session, name))
                self._session.conf.set(name, value)
            for module in self._order.modules:
                cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
                undo.callback(cloudpickle.unregister_pickle_by_value, module)
            log = logging.getLogger("SQLQueryContextLogger")  # would print each error as JSON
            undo.callback(setattr, log, "disabled", log.disabled)
            log.disabled = True
            with self._errors.told():
                yield


def _restore(session: SparkSession, name: str) -> Callable[[], None]:
    before = session.conf.get(name, None)

    def undo() -> None:
        with contextlib.suppress(Exception):  # Spark itself may be gone
            if before is None:
                session.conf.unset(name)
            else:
                session.conf.set(name, before)

    return undo


def _path(reader: SparkReader, data_root: Path) -> str:
    """A path as Spark is given it: a relative one lies under the site's data root, if it is there.

    A name without a slash is a catalog's table in Iceberg.
    """
    path = reader.path or ""
    inside = data_root / path
    return str(inside) if "://" not in path and inside.exists() else path


def _column(name: str) -> str:
    """A column of whatever name, as Spark is given it: dots and backticks mean nothing."""
    quoted = name.replace("`", "``")
    return f"`{quoted}`"


def _check_names(names: list[str], table: SparkTable, at: str) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"{at}: {table.shown} has more than one column named {', '.join(doubled)}. Give each a "
            "name of its own (SELECT ... AS ...)."
        )
    for name in table.key:
        if name not in names:
            raise DataError(
                f"{at}.key names column {name}, which {table.shown} lacks. The columns are: "
                f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
            )


def _is_vector(type_: T.DataType) -> bool:
    is_user = isinstance(type_, T.UserDefinedType)
    return is_user and type(type_).__name__ == "VectorUDT"


def _arrow_type(type_: T.DataType) -> pa.DataType:
    """The type that a column arrives as; what cannot arrive is a struct."""
    if _is_vector(type_):
        return pa.list_(pa.float64())
    if isinstance(type_, T.UserDefinedType):
        return pa.struct([("value", pa.binary())])
    if isinstance(type_, T.TimestampType):
        return pa.timestamp("us", "UTC")
    if isinstance(type_, T.ArrayType):
        return pa.list_(_arrow_type(type_.elementType))
    try:
        return to_arrow_type(type_)
    except Exception:  # a type that Spark has and Arrow has not
        return pa.struct([(type_.simpleString(), pa.binary())])


def _is_left_out(type_: pa.DataType) -> bool:
    """Whether values of a type are neither exported nor a feature: structs, maps, intervals."""
    if pa.types.is_list(type_):
        return _is_left_out(type_.value_type)
    is_left_out = (pa.types.is_struct, pa.types.is_map, pa.types.is_duration)
    return any(is_such(type_) for is_such in is_left_out)
