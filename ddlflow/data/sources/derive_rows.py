"""Derived columns, computed: each batch of a source as it is read, in the types that were bound."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.derive import Derived
from ddlflow.data.sources.derive_sql import computed, without_nan
from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError


def evaluate(
    batch: pa.RecordBatch, names: Sequence[str], derived: Sequence[Derived]
) -> pa.RecordBatch:
    """The columns ``names`` of a batch, those among them computed that are derived.

    Args:
        batch: the columns that ``needed`` names.
        names: the columns that are wanted.
        derived: of ``needed``.

    Raises:
        DataError: a value that cannot be computed.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for column in derived:
        read = {
            name: _as_type(columns[name], type_, name, column.key)
            for name, type_ in zip(column.reads, column.takes, strict=True)
        }
        columns[column.name] = computed(column.sql, column.key, read)
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names=list(names))


def _as_type(array: pa.Array, type_: pa.DataType, name: str, key: str) -> pa.Array:
    if array.type == type_:
        return array
    has_numbers, has_words = kind_of(array.type) == "number", kind_of(array.type) == "text"
    if pa.types.is_floating(array.type) and pc.all(pc.is_nan(array)).as_py() is not False:
        array = pa.nulls(len(array))  # pandas' type of a column without any value
        has_numbers = False
    is_word = has_words or pa.types.is_null(array.type)
    if kind_of(type_) == "text" and not is_word:
        raise DataError(
            f"{key} reads column {name} as text, and here it is of type {array.type}: which text a "
            "value stands for is not plain. Give the column as text."
        )
    if not is_word and has_numbers != (kind_of(type_) == "number"):  # 1650213966000: of 2022?
        how = ", of JSON as texts such as 2020-01-31 12:00:00" if has_numbers else ""
        raise DataError(
            f"{key} reads column {name} as {type_}, and here it is of type {array.type}: which "
            f"value stands for which is not plain. Give the column as {type_}{how}."
        )
    if pa.types.is_boolean(type_) and has_numbers:
        two = pc.is_in(without_nan(array).cast(pa.float64()), value_set=pa.array([0.0, 1.0, None]))
        if pc.all(two).as_py() is False:
            shown = array.filter(pc.invert(two))[0].as_py()
            raise DataError(
                f"{key} reads column {name} as true or false, and here it holds {shown!r}. Give "
                "the column as true or false, or as 0 and 1."
            )
    try:
        if pa.types.is_time(type_) and kind_of(array.type) == "text":
            array = pc.binary_join_element_wise("1970-01-01 ", array.cast(pa.string()), "")
            array = array.cast(pa.timestamp(type_.unit))  # from text to a time there is no cast
        elif pa.types.is_date(type_) and has_words:
            array = array.cast(pa.timestamp("ms"))  # 2020-01-31T00:00:00.000 is a day too
        return without_nan(array).cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{key} reads column {name} as {type_}, and some rows have it as {array.type}: "
            f"{str(error).splitlines()[0].rstrip('.')}. Write it with one type in the source."
        ) from error
