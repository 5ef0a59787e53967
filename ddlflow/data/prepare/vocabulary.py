"""The values of the categories and how often each is seen: counted apart, merged out of core.

Each scan leaves the counts of its rows in a file. Files are merged by workers, `FAN_IN` at a time,
until the driver can read what is left: it holds the counts of one category at a time, and in the
end the values that are codes. Counts are exact, so `data.rare_below` is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.columns import Category, category_values
from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError
from ddlflow.store.stored import StoredFile

MAX_CATEGORIES = 1_000_000
FAN_IN = 64  # files that one merge reads
_MERGE_ROWS = 2_000_000  # counts held before they are merged: some 80 MB of columns

Map = Callable[[Callable[[Any], Any], list[Any], str], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """A categorical column as it is counted: its name, and whether its values are text."""

    name: str
    is_text: bool


@dataclass(frozen=True, slots=True)
class MergeTask:
    """Files of counts that one worker merges into another."""

    files: tuple[StoredFile, ...]
    columns: tuple[CategoryColumn, ...]
    into: StoredFile


class ValueCounts:
    """How many rows have each value of a categorical column."""

    def __init__(self, column: CategoryColumn) -> None:
        self._column = column
        self._held: list[pa.Table] = []
        self._rows = 0

    def add(self, column: pa.Array) -> None:
        """Counts the rows of a piece.

        Raises:
            DataError: a category of whole numbers holds something else, or too many values.
        """
        values = category_values(column, self._column.name, "text" if self._column.is_text else "")
        found = pc.value_counts(values.drop_null())
        self.merge(pa.table({"value": found.field(0), "rows": found.field(1)}))

    def merge(self, counts: pa.Table) -> None:
        """Adds counts: ``value``, each once, and ``rows``.

        Raises:
            DataError: too many values.
        """
        self._held.append(counts)
        self._rows += counts.num_rows
        if self._rows > _MERGE_ROWS:
            self._held = [self.table()]
            self._rows = self._held[0].num_rows

    def table(self) -> pa.Table:
        """The counts: ``value``, each once, in no order, and ``rows``.

        Raises:
            DataError: more than ``MAX_CATEGORIES`` values: it looks like a key.
        """
        if not self._held:
            type_ = pa.string() if self._column.is_text else pa.int64()
            return pa.table({"value": pa.array([], type_), "rows": pa.array([], pa.int64())})
        together = pa.concat_tables(self._held)
        if len(self._held) > 1:
            summed = together.group_by("value", use_threads=False).aggregate([("rows", "sum")])
            together = pa.table({"value": summed["value"], "rows": summed["rows_sum"]})
        if together.num_rows > MAX_CATEGORIES:
            raise DataError(
                f"Category {self._column.name} has more than {MAX_CATEGORIES} different values: it "
                "looks like a key. List it in data.exclude."
            )
        return together


def category_columns(
    schema: dict[str, pa.DataType], names: Sequence[str]
) -> tuple[CategoryColumn, ...]:
    """How categorical columns are counted: as text, or as whole numbers."""
    return tuple(CategoryColumn(name, kind_of(schema[name]) == "text") for name in names)


def save_counts(
    file: StoredFile, columns: Sequence[CategoryColumn], counts: Iterable[pa.Table]
) -> None:
    """Writes the counts of each category, a record batch each."""
    fields = [("text", pa.string()), ("whole", pa.int64()), ("rows", pa.int64())]
    schema = pa.schema(fields)
    with (
        file.made() as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):
        for column, table in zip(columns, counts, strict=True):
            value, rows = (table[name].combine_chunks() for name in ("value", "rows"))
            text = value if column.is_text else pa.nulls(len(value), pa.string())
            whole = pa.nulls(len(value), pa.int64()) if column.is_text else value
            out.write_batch(pa.record_batch([text, whole, rows], schema=schema))


def load_counts(file: StoredFile, index: int, column: CategoryColumn) -> pa.Table:
    """The counts of one category, from ``save_counts``."""
    with pa.OSFile(str(file.here())) as opened, pa.ipc.open_file(opened) as counts:
        batch = counts.get_batch(index)
    return pa.table({"value": batch["text" if column.is_text else "whole"], "rows": batch["rows"]})


def merge_counts(task: MergeTask) -> StoredFile:
    """Merges files of counts; one that stands is left.

    Raises:
        DataError: too many values.
    """
    if not task.into.exists():
        tables = (_merged(task.files, k, column).table() for k, column in enumerate(task.columns))
        save_counts(task.into, task.columns, tables)
    return task.into


def vocabulary(
    files: Sequence[StoredFile],
    columns: Sequence[CategoryColumn],
    *,
    key: str,
    rows: int,
    rare_below: int,
    map_over: Map,
) -> tuple[Category, ...]:
    """The categories: values seen in ``rare_below`` rows or more, sorted.

    Args:
        files: of counts; more of them are written beside.
        columns: the categorical columns.
        key: of all that the counts depend on.
        rows: that were counted, those without a value too.
        rare_below: see ``Data``.
        map_over: merges on workers where there are many files.

    Raises:
        DataError: too many values.
    """
    level = 0
    while columns and len(files) > FAN_IN:
        level += 1
        tasks = [
            MergeTask(
                tuple(files[k : k + FAN_IN]),
                tuple(columns),
                replace(files[k], key=f"counts-{key[:16]}-{level}-{k // FAN_IN:05d}.arrow"),
            )
            for k in range(0, len(files), FAN_IN)
        ]
        files = list(map_over(merge_counts, tasks, "categories"))
    return tuple(
        _category(column, _merged(files, k, column).table(), rows, rare_below)
        for k, column in enumerate(columns)
    )


def _merged(files: Sequence[StoredFile], index: int, column: CategoryColumn) -> ValueCounts:
    found = ValueCounts(column)
    for file in files:
        found.merge(load_counts(file, index, column))
    return found


def _category(column: CategoryColumn, counts: pa.Table, rows: int, rare_below: int) -> Category:
    often = counts.filter(pc.greater_equal(counts["rows"], rare_below)).sort_by("value")
    known = pc.sum(often["rows"]).as_py() or 0
    values = tuple(often["value"].to_pylist())
    return Category(
        column.name, "text" if column.is_text else "integer", values, 1 - known / max(rows, 1)
    )
