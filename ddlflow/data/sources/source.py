"""A source: a table that is read range by range, whatever holds it.

    source = open_source("events/*.csv.gz", spec, data_root)     # opening.py
    for part in ranges(source):
        for batch in read(source, part, ["label", "m_jj"]):
            ...

``Source`` is what every kind of source gives; table_files.py is the first kind. The ranges depend
on the source alone: so the engine and its workers never enter the result.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import pyarrow as pa

from ddlflow.data.fields import Field, tensor_field
from ddlflow.data.sources.derive import Derived, needed
from ddlflow.data.sources.derive_rows import evaluate
from ddlflow.data.tensors import sample_bytes
from ddlflow.errors import DataError
from ddlflow.store.store import Store

PIECE_ROWS = 262_144  # rows held at once; 28 float32 columns are 28 MiB
PIECE_BYTES = 64 << 20  # and of the tensors in them


@dataclass(frozen=True, slots=True)
class Range:
    """A part of a source that is read on its own.

    Attributes:
        index: its number, in row order.
        file: the number of the file (or what a kind has in place of files) that it lies in.
        start: first row group, record batch or byte there.
        stop: the one after the last.
    """

    index: int
    file: int
    start: int
    stop: int


class Source(Protocol):
    """A table. It holds no open handle and no rows: pickled, it travels to workers.

    Every kind passes tests/data/sources/test_contract.py.
    """

    @property
    def location(self) -> str:
        """Where it is, as it was given."""

    @property
    def address(self) -> str:
        """Where it is, for anybody: an absolute path or a URL."""

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """Column name -> type, in order; derived columns come last."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        """The columns that are computed, in the order of evaluation."""

    @property
    def fingerprint(self) -> str:
        """A hash that is another one when the rows, or how they are read, may be others."""

    @property
    def rows(self) -> int | None:
        """How many there are, where that is known without reading them; never 0."""

    @property
    def num_bytes(self) -> int | None:
        """How many bytes have to be read for all of it, where that is known."""

    @property
    def index(self) -> tuple[str, ...]:
        """Columns that were the index of the frame that was written: no features by default."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it is read: full sentences."""

    @property
    def summary(self) -> str:
        """What it is, in a few words: ``csv, 3 files``."""

    @property
    def untyped(self) -> Collection[str]:
        """The columns that are texts without a type of their own, as all of a CSV file are."""

    @property
    def missing_words(self) -> tuple[str, ...]:
        """The texts that stand for a missing value in ``untyped`` columns."""

    def as_text(self, names: Iterable[str]) -> Self:
        """The same rows, some ``untyped`` columns read as text; others of these names stay."""

    def verbatim(self, names: Iterable[str]) -> Self:
        """The same rows, some ``untyped`` columns as the text that stands there, none missing."""

    def ranges(self) -> list[Range]:
        """Its parts in row order, numbered from 0; the same each time, wherever they are asked for.

        Raises:
            DataError: what it lies in cannot be read.
        """

    def only(self, *parts: Range) -> Self:
        """What reads these ranges and no other: small to send."""

    def share(self, part: Range) -> float:
        """How much of a whole range a range is, known without reading it; asked of all ranges."""

    def extremes(self, part: Range, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of those numeric columns that it states itself."""

    def without_nulls(self, part: Range, names: Iterable[str]) -> Collection[str]:
        """Those of some columns of tensors of which it states that no row of a range is null."""

    def place(self, part: Range) -> str:
        """Where a range lies, for messages: a file's name."""

    def converted(self, place: Store, names: Sequence[str]) -> Self:
        """The same rows; what has to be parsed is kept as Parquet as it is first read.

        Args:
            place: that every worker sees, and of this source alone (`converted.place_of`); what it
                keeps is used again.
            names: the columns that are read of it, over all passes; not derived ones.
        """

    def batches(self, part: Range, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a range in order, in batches of any size and of one schema.

        Holds little at once, whatever the size of the range.

        Args:
            part: from ``ranges``.
            names: columns in ``schema`` that are not derived; the batches have them in this order.

        Raises:
            DataError: a value or a row that does not fit, with its place; a damaged file.
        """


def ranges(source: Source) -> list[Range]:
    """The ranges of a source, in row order.

    Raises:
        DataError: what it lies in cannot be read.
    """
    return source.ranges()


def read(source: Source, part: Range, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a range, in order, in pieces of ``PIECE_ROWS`` rows (the last may be shorter).

    Tensors make a piece shorter: it has at most ``PIECE_BYTES`` of them, or one row.

    Holds a few pieces at once, whatever the size of a row group or of a gzipped file.

    Args:
        source: from ``open_source``.
        part: from ``ranges``.
        columns: names in ``source.schema``; the batches have them in this order.

    Raises:
        DataError: a value or a row that does not fit, a damaged file.
    """
    derived, own = needed(columns, source.derived)
    for piece in in_pieces(source.batches(part, own)):
        yield evaluate(piece, columns, derived) if derived else piece


def in_pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly ``PIECE_ROWS``, but the last; of tensors, in batches of
    as many rows as ``PIECE_BYTES`` have room for, however they come.

    Raises:
        DataError: a piece's texts in one column are more than 2 GiB.
    """
    held: list[pa.RecordBatch] = []
    rows, size = 0, 0
    for batch in batches:
        tensors = tensors_of(dict(zip(batch.schema.names, batch.schema.types, strict=True)))
        sizes = np.zeros(batch.num_rows if tensors else 0, dtype=np.int64)
        for field in tensors:
            sizes += sample_bytes(batch.column(field.name), field)
        while True:
            cut = left = PIECE_ROWS - rows
            if tensors:  # one row at least, however large
                fitting = np.searchsorted(np.cumsum(sizes), PIECE_BYTES - size, side="right")
                cut = min(left, max(int(fitting), 0 if held else 1))
            # As many rows as there are may leave room for more.
            if batch.num_rows < cut or batch.num_rows == cut < left:
                break
            yield _joined([*held, batch.slice(0, cut)])
            batch, sizes = batch.slice(cut), sizes[cut:]  # noqa: PLW2901 - what is left of it
            held, rows, size = [], 0, 0
        if batch.num_rows:
            held.append(batch)
            rows += batch.num_rows
            size += int(sizes.sum())
    if held:
        yield _joined(held)


def tensors_of(schema: Mapping[str, pa.DataType]) -> list[Field]:
    """The columns of tensors and sequences."""
    found = (tensor_field(name, type_) for name, type_ in schema.items())
    return [field for field in found if field is not None]


def rows_of_piece(schema: Mapping[str, pa.DataType]) -> int:
    """The rows of a piece as far as types tell; the values of sequences may make it shorter."""
    held = sum(field.value_bytes for field in tensors_of(schema) if not field.is_sequence)
    return max(1, min(PIECE_ROWS, PIECE_BYTES // held)) if held else PIECE_ROWS


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    batches = [batch for batch in batches if batch.num_rows] or batches[:1]
    if len(batches) == 1:
        return batches[0]
    joined = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if len(joined) != 1:  # 2 GiB of text in one column of one piece
        raise DataError(
            f"{PIECE_ROWS} rows hold more than 2 GiB in one column. Exclude that column."
        )
    return joined[0]
