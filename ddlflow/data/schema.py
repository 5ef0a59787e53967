"""The columns of a source: their names and types, and that all its files agree on them."""

from collections.abc import Iterable

import pyarrow as pa

from ddlflow.data.files import File
from ddlflow.errors import DataError
from ddlflow.spec.explain import nearest
from ddlflow.spec.pipeline import Data


def meant(name: str, known: Iterable[str]) -> str:
    """For a misspelt column: `` Did you mean 'm_jj'?``, or the list where no name is near."""
    names = list(known)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return nearest(name, names) or f" The columns are: {shown}."


def check_names(file: File, schema: pa.Schema) -> None:
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise DataError(f"{file.path} has more than one column named {', '.join(doubled)}.")


def check_same(
    file: File, schema: pa.Schema, first: File, wanted: pa.Schema, format_name: str
) -> None:
    """The files of one source have the same columns, each of one kind.

    In JSON lines a key may be absent from any row, so absence says nothing; in CSV the order
    matters too, as it is what tells columns apart without a header.
    """
    if format_name == "jsonl":
        return
    missing = [name for name in wanted.names if name not in schema.names]
    extra = [name for name in schema.names if name not in wanted.names]
    parts = []
    if missing:
        parts.append(f"lacks {', '.join(missing)}")
    if extra:
        parts.append(f"has {', '.join(extra)} besides")
    if not parts and format_name == "csv" and schema.names != wanted.names:
        parts.append("has its columns in another order")
    if not parts and format_name != "csv":  # a CSV block of whole numbers says little
        parts += [
            f"has {name} as {schema.field(name).type} and not {wanted.field(name).type}"
            for name in wanted.names
            if kind_of(schema.field(name).type) != kind_of(wanted.field(name).type)
        ]
    if parts:
        raise DataError(
            f"{file.path} differs from {first.path}: it {' and '.join(parts)}. "
            "All files of a source need the same columns."
        )


def kind_of(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    if (
        number
        or pa.types.is_decimal(type_)
        or pa.types.is_boolean(type_)
        or pa.types.is_null(type_)
    ):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    return str(type_)


def is_time(type_: pa.DataType) -> bool:
    """Whether values of a type stand in an order in time: numbers, dates and timestamps."""
    is_day = pa.types.is_date(type_) or pa.types.is_timestamp(type_)
    return is_day or (kind_of(type_) == "number" and not pa.types.is_boolean(type_))


def is_name(type_: pa.DataType) -> bool:
    """Whether values of a type can name groups: texts, numbers (whole ones), dates, timestamps."""
    return is_time(type_) or pa.types.is_boolean(type_) or kind_of(type_) == "text"


def is_feature(name: str, spec: Data) -> bool:
    """Whether a column of the source is a feature, by name alone."""
    if name in (spec.label, spec.split.column):
        return False
    return name not in spec.exclude if spec.features == "all" else name in spec.features


def text_type(name: str, type_: pa.DataType, spec: Data) -> pa.DataType:
    """The type a text column is parsed as: what was seen in the first block, made wide enough.

    Whole numbers may turn into decimals further down, so features and labels are float64.
    """
    if name in spec.categorical:
        return pa.string() if pa.types.is_null(type_) else type_
    used = name == spec.label or is_feature(name, spec)
    if used and (pa.types.is_integer(type_) or pa.types.is_null(type_)):
        return pa.float64()
    return pa.string() if pa.types.is_null(type_) else type_


def folder_columns(files: list[File], types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """The columns that key=value folders stand for: int64 where every value is a whole number."""
    found: dict[str, pa.DataType] = {}
    for key in dict.fromkeys(key for file in files for key, _ in file.keys):
        if key in types:
            continue  # the file's own column is the better witness
        values = [dict(file.keys).get(key) for file in files]
        whole = all(v is None or v.removeprefix("-").isdecimal() for v in values)
        found[key] = pa.int64() if whole and any(values) else pa.string()
    return found
