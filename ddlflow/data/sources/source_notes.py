"""What a user should know of how a source was read, though nothing is wrong with it."""

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.dialect import Dialect
from ddlflow.data.sources.files import File
from ddlflow.data.sources.schema import is_feature
from ddlflow.spec.pipeline import Data

PANDAS_INDEX = "__index_level_"  # what pandas calls an index without a name in Parquet


def index_of_frame(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a Parquet or Arrow file that were the index of a pandas frame."""
    said = schema.pandas_metadata or {}
    named = [name for name in said.get("index_columns", []) if isinstance(name, str)]
    return tuple(name for name in schema.names if name in named or name.startswith(PANDAS_INDEX))


def index_of_text(rows: pa.Table) -> tuple[str, ...]:
    """The first column of a CSV file, if it has no name and each row another value.

    ``to_csv`` of pandas and ``write.csv`` of R write a frame's index or row names there.
    """
    if not rows.num_columns or not _is_unnamed(rows.column_names[0]):
        return ()
    column = rows.column(0)
    is_key = pa.types.is_integer(column.type) or pa.types.is_string(column.type)
    if not is_key or column.null_count or pc.count_distinct(column).as_py() < len(column):
        return ()
    return (rows.column_names[0],)


def note_index(names: tuple[str, ...], spec: Data) -> list[str]:
    """That a table's index is no feature."""
    left = [n for n in names if spec.features == "all" and is_feature(n, spec)]
    left = [name for name in left if name not in spec.categorical]
    if not left:
        return []
    return [
        f"{', '.join(left)}: the index of the table that was written, so no feature. Name it in "
        "data.features to use it, or in data.exclude."
    ]


def blank_columns(types: dict[str, pa.DataType], dialect: Dialect, spec: Data) -> tuple[str, ...]:
    """The columns of a CSV file that have no name and, in the first rows, no value.

    A delimiter at the end of every line makes one.
    """
    if dialect.format != "csv" or not dialect.header:
        return ()
    named = {*spec.exclude, *spec.categorical, *spec.text, *spec.features}
    return tuple(
        name
        for name, type_ in types.items()
        if _is_unnamed(name) and pa.types.is_null(type_) and name not in named
    )


def note_unnamed(
    names: tuple[str, ...], blank: tuple[str, ...], index: tuple[str, ...], dialect: Dialect
) -> list[str]:
    """What became of the columns of a CSV file that have no name."""
    if dialect.format != "csv" or not dialect.header:
        return []
    found = []
    for position, name in enumerate(names, 1):
        if name in blank:
            found.append(f"Column {position} of {len(names)} has no name and no value: left out.")
        elif _is_unnamed(name) and name not in index:
            found.append(f"Column {position} of {len(names)} has no name: it is called {name!r}.")
    return found


def note_hashed(files: list[File]) -> list[str]:
    """That files without a stamp are read once more."""
    size = sum(file.size for file in files if not file.stamp)
    if not size:
        return []
    return [
        f"{files[0].path}: nothing where it lies tells when it changes, so it is read whole "
        f"({size / 1e6:,.1f} MB) each time that it is looked at. Download it if that takes long."
    ]


def _is_unnamed(name: str) -> bool:
    return name.startswith("Unnamed: ")


def note_missing(texts: pa.Table, dialect: Dialect, spec: Data) -> list[str]:
    """Which words stand for missing values in the text columns of a CSV file's first rows.

    Args:
        texts: the columns that are text, as they are written: no value of them is null.
        dialect: which words these are.
        spec: which columns matter; with ``missing_values`` of its own it knows.
    """
    if spec.missing_values != "pandas":
        return []
    found = []
    words = pa.array([word for word in dialect.missing if word])
    for name, column in zip(texts.column_names, texts.columns, strict=True):
        if name in spec.exclude:
            continue
        taken = column.filter(pc.is_in(column, value_set=words))
        if not len(taken):
            continue
        counts = sorted(pc.value_counts(taken).to_pylist(), key=lambda entry: -entry["counts"])
        listed = ", ".join(f"{e['values']!r} {e['counts']:,} times" for e in counts[:5])
        found.append(
            f"{name}: {listed} in the first {len(column):,} rows, read as missing. Set "
            'data.missing_values: [""] if it is a value.'
        )
    return found
