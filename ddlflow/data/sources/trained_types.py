"""The types that columns had in training: written down with the model, read by on later sources.

A type is guessed from a text file's first rows once, when a model is trained. From then on its
columns are known: zip codes stay text, whatever the rows at hand look like.
"""

import contextlib
import re
from collections.abc import Collection, Mapping

import pyarrow as pa

from ddlflow.data.sources.schema import kind_of

Types = Mapping[str, pa.DataType]
_WITH_ZONE = re.compile(r"timestamp\[(\w+), tz=(.+)\]")
_DECIMAL = re.compile(r"decimal(32|64|128|256)\((\d+), (-?\d+)\)")


def plain(type_: pa.DataType) -> pa.DataType:
    """The type less how Arrow stores it: one type of text, and no dictionaries."""
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    return pa.string() if kind_of(type_) == "text" else type_


def written(type_: pa.DataType) -> str:
    """A type as the text that `read_back` understands; what it does not is a text's."""
    return str(plain(type_))


def read_back(text: str) -> pa.DataType:
    """The inverse of `written`.

    Raises:
        ValueError: no such type.
    """
    if zone := _WITH_ZONE.fullmatch(text):
        return pa.timestamp(zone[1], zone[2])
    if decimal := _DECIMAL.fullmatch(text):
        make = getattr(pa, f"decimal{decimal[1]}")
        return make(int(decimal[2]), int(decimal[3]))
    return pa.type_for_alias(text)


def type_names(types: Types) -> dict[str, str]:
    """The types as text, less those that cannot be read back: of lists and structs."""
    found = {}
    for name, type_ in types.items():
        with contextlib.suppress(ValueError):
            read_back(written(type_))
            found[name] = written(type_)
    return found


def as_parsed(
    types: Types, categorical: Collection[str], computed_from: Collection[str] = ()
) -> dict[str, pa.DataType]:
    """What a text is to be parsed as, so that it becomes a column of a known type.

    Whole numbers are parsed as float64, as a gap or a decimal may follow; where they are categories
    as text, in which 2020 and 2020.0 are found to be one (``convert.whole_of``). What expressions
    read (``computed_from``) is parsed as it was; times to the microsecond.
    """
    found = {}
    for name, type_ in types.items():
        is_number = kind_of(type_) == "number" and not pa.types.is_boolean(type_)
        is_number = is_number and name not in computed_from
        wide = pa.string() if name in categorical else pa.float64()
        found[name] = wide if is_number else plain(type_)
        if pa.types.is_timestamp(type_) and type_.unit in ("s", "ms"):  # a fraction may follow
            found[name] = pa.timestamp("us", type_.tz)
    return found


def type_to_parse(
    name: str, seen: pa.DataType, known: Types, format_name: str
) -> pa.DataType | None:
    """The type that a known column of a text format is parsed as; None: nothing is known of it.

    JSON tells numbers from text by itself; there the known type decides only what it leaves open.

    Args:
        name: of the column.
        seen: what its first rows suggest.
        known: from `as_parsed`.
        format_name: csv or jsonl.
    """
    wanted = known.get(name)
    if wanted is None or format_name == "csv" or pa.types.is_null(seen):
        return wanted
    if pa.types.is_integer(seen) or pa.types.is_floating(seen):
        return wanted if pa.types.is_floating(wanted) else seen
    if pa.types.is_string(seen) or pa.types.is_temporal(seen):  # JSON has no dates, only text
        return wanted if pa.types.is_timestamp(wanted) else pa.string()  # its parser reads no days
    return seen
