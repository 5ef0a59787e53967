"""Tables in files of one format: Parquet, Arrow, CSV or JSON.

The ranges are row groups of Parquet, record batches of Arrow (small ones together), 64 MiB of
whole rows of text, a whole file where it is packed.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

import pyarrow as pa

from ddlflow.data.sources import columnar, converted, row_blocks, text
from ddlflow.data.sources import source as source_
from ddlflow.data.sources.converted import SMALL, Conversion
from ddlflow.data.sources.derive import Derived
from ddlflow.data.sources.dialect import Dialect
from ddlflow.data.sources.files import File, open_file, reading
from ddlflow.data.sources.schema import conform, kind_of
from ddlflow.data.sources.source import Range
from ddlflow.store.store import Store


@dataclass(frozen=True, slots=True)
class TableFiles:
    """A ``Source`` that is one file or many.

    Attributes:
        location: as it was given.
        address: absolute path or URL.
        dialect: the format, and how text is to be read.
        schema: column name -> type, in order; folder columns (key=value) come after those of the
            files, derived ones last.
        files: number -> file; a worker is given only the files that it reads.
        names: columns of the files themselves, in order.
        fingerprint: hash of names, sizes, stamps and dialect: what tells that a source changed.
        rows: their number, where the format states it (Parquet, Arrow).
        index: columns that were the index of the frame that was written: no features by default.
        notes: what a user should know of how it is read.
        derived: the columns that are computed, in the order of evaluation.
        conversion: where text that was parsed is kept as Parquet, if it is.
    """

    location: str
    address: str
    dialect: Dialect
    schema: dict[str, pa.DataType]
    files: dict[int, File]
    names: tuple[str, ...]
    fingerprint: str
    rows: int | None
    index: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    derived: tuple[Derived, ...] = ()
    conversion: Conversion | None = None

    @property
    def summary(self) -> str:
        number = len(self.files)
        return f"{self.dialect.format}, {number:,} file{'s' * (number != 1)}"

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def untyped(self) -> Collection[str]:
        return self.names if self.dialect.format == "csv" else ()

    @property
    def missing_words(self) -> tuple[str, ...]:
        return self.dialect.missing

    def as_text(self, names: Iterable[str]) -> "TableFiles":
        texts = dict.fromkeys((name for name in names if name in self.untyped), pa.string())
        return replace(self, schema={**self.schema, **texts}, conversion=None)

    def verbatim(self, names: Iterable[str]) -> "TableFiles":
        return replace(self.as_text(names), dialect=replace(self.dialect, missing=()))

    def ranges(self) -> list[Range]:
        """Text files are read around each cut only."""
        found: list[Range] = []
        for number, file in self.files.items():
            for start, stop in self._extents(file):
                found.append(Range(len(found), number, start, stop))
        return found

    def only(self, *parts: Range) -> "TableFiles":
        """The source with the files that some ranges lie in, less what their ranges come from."""
        numbers = dict.fromkeys(part.file for part in parts)
        return replace(self, files={n: replace(self.files[n], units=()) for n in numbers})

    def share(self, part: Range) -> float:
        if self.dialect.is_text:
            return (part.stop - part.start) / text.RANGE_BYTES
        rows = sum(self.files[part.file].units[part.start : part.stop])
        return rows / source_.rows_of_piece(self.schema)

    def extremes(self, part: Range, names: Iterable[str]) -> dict[str, tuple[float, float]]:
        """What Parquet's own statistics say."""
        own = [name for name in names if name in self.names]
        inside = [name for name in own if kind_of(self.schema[name]) == "number"]
        if self.dialect.format != "parquet" or not inside:
            return {}
        file = self.files[part.file]
        with reading(file.path), open_file(self.address, file) as handle:
            footer = columnar.parquet_metadata(handle, self.address, file)
        return columnar.parquet_extremes(footer, range(part.start, part.stop), inside)

    def without_nulls(self, part: Range, names: Iterable[str]) -> Collection[str]:
        """As far as Parquet's own statistics tell."""
        inside = [name for name in names if name in self.names]
        if self.dialect.format != "parquet" or not inside:
            return ()
        file = self.files[part.file]
        with reading(file.path), open_file(self.address, file) as handle:
            footer = columnar.parquet_metadata(handle, self.address, file)
        return columnar.parquet_without_nulls(footer, range(part.start, part.stop), inside)

    def place(self, part: Range) -> str:
        return self.files[part.file].name

    def converted(self, place: Store, names: Sequence[str]) -> "TableFiles":
        if not self.dialect.is_text:
            return self
        return replace(self, conversion=Conversion(place.location, tuple(names)))

    def batches(self, part: Range, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self.conversion is None or self.share(part) < SMALL:
            return self._from_file(part, names)
        parse = partial(self._from_file, part)
        return converted.batches(self.conversion, part, names, self.schema, parse)

    def _from_file(self, part: Range, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        file = self.files[part.file]
        inside = [name for name in names if name in self.names]
        # Folder columns alone do not tell how many rows there are: any column of the file does.
        physical = inside or [next(name for name in self.names if name in self.schema)]
        keys = dict(file.keys)
        with reading(file.path), open_file(self.address, file) as handle:
            for batch in self._read(file, part, handle, physical):
                arrays = [
                    conform(batch.column(name), self.schema[name], name, file.path)
                    if name in self.names
                    else _constant(keys.get(name), self.schema[name], batch.num_rows)
                    for name in names
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _extents(self, file: File) -> list[tuple[int, int]]:
        if self.dialect.is_text:
            return _cuts(self.address, file, self.dialect, text.RANGE_BYTES, text.SCHEMA_BYTES)
        return columnar.groups(file.units, source_.rows_of_piece(self.schema))

    def _read(
        self, file: File, part: Range, handle: pa.NativeFile, columns: list[str]
    ) -> Iterator[pa.RecordBatch]:
        kind = self.dialect.format
        rows = source_.PIECE_ROWS
        if kind == "parquet":
            footer = columnar.parquet_metadata(handle, self.address, file)
            groups = range(part.start, part.stop)
            return columnar.parquet_batches(handle, footer, groups, columns, rows)
        if kind == "arrow":
            return columnar.arrow_batches(handle, part.start, part.stop, columns, rows)
        wanted = {name: self.schema[name] for name in columns}
        # A column without a name has to stay as empty as it was in the first rows.
        blank = {name: pa.null() for name in self.names if name not in self.schema}
        return text.batches(
            handle,
            file.path,
            extent=(part.start, part.stop),
            dialect=self.dialect,
            names=self.names,
            columns=wanted | blank,
        )


@lru_cache(maxsize=4096)
def _cuts(
    address: str, file: File, dialect: Dialect, range_bytes: int, schema_bytes: int
) -> list[tuple[int, int]]:
    """Where a text file is cut: the same for the same file, and asked for by several stages."""
    with reading(file.path), open_file(address, file) as handle:
        if row_blocks.is_whole(handle, file.name, file.size, dialect):
            return [(0, file.size)]
        block = row_blocks.first_block(
            handle, file.name, file.size, dialect.of_bytes(), schema_bytes
        )
        start = row_blocks.header_bytes(block, dialect)
        if start >= file.size:
            return []
        return row_blocks.cuts(handle, (start, file.size), dialect, range_bytes)


def fingerprint_of(files: Iterable[File], dialect: Dialect) -> str:
    """A hash of names, sizes, stamps and dialect."""
    facts: list[object] = [[file.name, file.size, file.stamp] for file in files]
    facts.append(asdict(dialect))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _constant(value: str | None, type_: pa.DataType, rows: int) -> pa.Array:
    number = int(value) if value is not None and pa.types.is_integer(type_) else value
    return pa.repeat(pa.scalar(number, type_), rows)
