"""The columns of a source: their names and types, and that all its files agree on them."""

import contextlib
from collections.abc import Container, Iterable, Sequence

import pyarrow as pa

from ddlflow.data.fields import tensor_field
from ddlflow.data.sources.files import File
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
        raise DataError(
            f"{file.path} has more than one column named {', '.join(doubled)}. "
            "Give each a name of its own."
        )


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
        pairs = [(name, schema.field(name).type, wanted.field(name).type) for name in wanted.names]
        parts += [
            f"has {name} as {type_} and not {other}"
            for name, type_, other in pairs
            if not (pa.types.is_null(type_) or pa.types.is_null(other))  # no value, no kind
            and kind_of(type_) != kind_of(other)
        ]
    if parts:
        raise DataError(
            f"{file.path} differs from {first.path}: it {' and '.join(parts)}. "
            "All files of a source need the same columns."
        )


def widened(schemas: Sequence[pa.Schema], names: Iterable[str]) -> dict[str, pa.DataType]:
    """The type of some columns that holds the values of every file: numbers differ in width."""
    found = {}
    for name in names:
        own = [schema.field(name) for schema in schemas if name in schema.names]
        if len({field.type for field in own}) > 1:
            one = [pa.schema([field]) for field in own]
            with contextlib.suppress(pa.ArrowTypeError):  # then the first file's type counts
                found[name] = pa.unify_schemas(one, promote_options="permissive").field(0).type
    return found


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
    if (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    ):
        return "text"
    tensor = tensor_field("tensors", type_)
    return tensor.shown if tensor is not None else str(type_)


def is_time(type_: pa.DataType) -> bool:
    """Whether values of a type stand in an order in time: numbers, dates and timestamps."""
    is_day = pa.types.is_date(type_) or pa.types.is_timestamp(type_)
    return is_day or (kind_of(type_) == "number" and not pa.types.is_boolean(type_))


def is_date(type_: pa.DataType) -> bool:
    """Whether values of a type are days, times of a day, or both."""
    return bool(pa.types.is_date(type_) or pa.types.is_timestamp(type_) or pa.types.is_time(type_))


def is_name(type_: pa.DataType) -> bool:
    """Whether values of a type can name groups: texts, numbers (whole ones), dates, timestamps."""
    return is_time(type_) or pa.types.is_boolean(type_) or kind_of(type_) == "text"


def is_feature(name: str, spec: Data) -> bool:
    """Whether a column of the source is a feature, by name alone."""
    if name in (spec.label, spec.split.column):
        return False
    return name not in spec.exclude if spec.features == "all" else name in spec.features


def types_of(schemas: list[pa.Schema]) -> dict[str, pa.DataType]:
    """Column -> type over all files: the first file that has values of a column says it."""
    found: dict[str, pa.DataType] = {}
    for schema in schemas:
        for name, type_ in zip(schema.names, schema.types, strict=True):
            before = found.get(name, pa.null())
            found[name] = type_ if pa.types.is_null(before) else before
    return found


def as_read(
    name: str,
    type_: pa.DataType,
    spec: Data,
    *,
    is_text_format: bool,
    computed_from: Container[str] = (),
) -> pa.DataType:
    """The type that a column is read as.

    What is inferred from a text format's first block is made wide enough: whole numbers may turn
    into decimals further down, so features and labels are float64. Identifiers of 64 bits without a
    sign that are categories are text, as int64 does not hold them. What expressions read
    (``computed_from``) stays whole, as it is in Parquet: ``make_date(year, month, 1)`` takes no
    decimals, and 7 as text is not 7.0.
    """
    values = type_.value_type if pa.types.is_dictionary(type_) else type_
    if name in spec.text or pa.types.is_string_view(values):
        return pa.string()
    if name in spec.categorical:
        is_wide = pa.types.is_uint64(values) or pa.types.is_null(values)
        return pa.string() if is_wide else type_
    if not is_text_format:
        return type_
    if name in computed_from:
        return pa.float64() if pa.types.is_null(type_) else type_
    used = name == spec.label or is_feature(name, spec)
    if used and (pa.types.is_integer(type_) or pa.types.is_null(type_)):
        return pa.float64()
    return pa.string() if pa.types.is_null(type_) else type_


def conform(array: pa.Array, type_: pa.DataType, name: str, path: str) -> pa.Array:
    """A file's values as the source has them: nulls get its type, what is to be text becomes text.

    Numbers of other widths stay as they are: all that reads them takes any.

    Raises:
        DataError: values that have no text.
    """
    own = array.type
    if own == type_ or not (pa.types.is_null(own) or pa.types.is_string(type_)):
        return array
    if pa.types.is_dictionary(own):
        if kind_of(own) == "text" and not pa.types.is_string_view(own.value_type):
            return array
        array = decoded(array)
    elif pa.types.is_large_string(own):
        return array
    try:
        return array.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{path}: column {name} is of type {own}, which cannot be read as text. "
            "Take it out of data.text."
        ) from error


def decoded(array: pa.Array) -> pa.Array:
    """A dictionary's values in place of its codes, those of Polars' categories too."""
    if not pa.types.is_dictionary(array.type):
        return array
    words = array.dictionary
    if pa.types.is_string_view(words.type):  # which Arrow cannot take by their codes
        array = pa.DictionaryArray.from_arrays(array.indices, words.cast(pa.string()))
    return array.dictionary_decode()


def folder_columns(
    files: list[File], types: dict[str, pa.DataType], spec: Data
) -> dict[str, pa.DataType]:
    """The columns that key=value folders stand for: int64 where every value is such a number."""
    found: dict[str, pa.DataType] = {}
    for key in dict.fromkeys(key for file in files for key, _ in file.keys):
        if key in types:
            continue  # the file's own column is the better witness
        values = [v for file in files if (v := dict(file.keys).get(key)) is not None]
        whole = key not in spec.text and all(map(_is_int64, values))
        found[key] = pa.int64() if whole and any(values) else pa.string()
    return found


def _is_int64(value: str) -> bool:
    return value.removeprefix("-").isdecimal() and -(2**63) <= int(value) < 2**63
