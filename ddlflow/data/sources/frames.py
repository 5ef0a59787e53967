"""Tables that lie in memory: pandas, Polars and Arrow alike, as one Arrow table."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from ddlflow.data.sources.schema import decoded
from ddlflow.data.sources.trained_types import plain
from ddlflow.errors import DataError


def is_frame(value: Any) -> bool:
    """Whether a value is a table: all such packages speak Arrow's own interface.

    So do Spark's frames; but these are not in memory, and would pass this process.
    """
    if type(value).__module__.startswith("pyspark."):
        return False
    return any(hasattr(value, name) for name in ("__arrow_c_stream__", "__arrow_c_array__"))


def is_pandas(value: Any) -> bool:
    """Whether a value is a pandas frame, without importing pandas."""
    return type(value).__module__.partition(".")[0] == "pandas"


def table_of(frame: Any, names: Sequence[str] | None = None) -> pa.Table:
    """A frame as an Arrow table; the index of a pandas frame is no column of it.

    Args:
        frame: a pandas, Polars or Arrow table.
        names: columns that are wanted, those of them that are there; none: all.

    Raises:
        DataError: no table, or a column whose values are of several types.
    """
    try:
        if is_pandas(frame):
            if names is not None:
                frame = frame[[name for name in names if name in frame.columns]]
            frame = frame.assign(**_nested(frame))
            return pa.Table.from_pandas(frame, preserve_index=False)
        table = frame if isinstance(frame, pa.Table) else pa.table(frame)
        if names is not None:
            table = table.select([name for name in names if name in table.schema.names])
        return table
    except (pa.ArrowException, TypeError, ValueError) as error:
        # pyarrow gives the value first, and then the column.
        said = "; ".join(str(part) for part in error.args) or type(error).__name__
        raise DataError(
            f"The table (a {type(frame).__name__}) cannot be read: {' '.join(said.split())}. "
            "Give a pandas, Polars or Arrow table whose columns are of one type each."
        ) from error


def _nested(frame: Any) -> dict[Any, Any]:
    """The columns of a pandas frame whose values are arrays of two axes or more, as lists: Arrow
    takes no others."""
    found = {}
    for name, type_ in frame.dtypes.items():
        is_object = getattr(type_, "kind", "") == "O"
        first = next((v for v in frame[name] if v is not None), None) if is_object else None
        if getattr(first, "ndim", 1) > 1:
            found[name] = frame[name].map(lambda v: v.tolist() if hasattr(v, "tolist") else v)
    return found


def names_of(frame: Any) -> list[str]:
    """The names of a table's columns; the table may be of any package."""
    names = frame.columns if is_pandas(frame) else table_of(frame).schema.names
    return [str(name) for name in names]


def batches(table: pa.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """A table in batches of so many rows (the last may be shorter), at least one.

    Columns have their plain types, and the batches do not tell how the table lay in memory: the
    same values give the same batches, whoever made the table.
    """
    for start in range(0, max(table.num_rows, 1), rows):
        piece = table.slice(start, rows)
        arrays = []
        for column in piece.columns:
            whole = column.combine_chunks() if column.num_chunks else pa.array([], column.type)
            if isinstance(whole, pa.ChunkedArray):  # 2 GiB of text in one column
                raise DataError(f"{rows} rows hold more than 2 GiB in one column. Leave it out.")
            arrays.append(decoded(whole).cast(plain(whole.type)))
        yield pa.RecordBatch.from_arrays(arrays, names=piece.schema.names)
