"""Text is parsed once: as a range of it is first read, its columns are kept as Parquet.

Every later pass, and every later data set of the same source, reads the Parquet. Each range is a
file of its own, written whole or not at all by whichever worker parses it; two that write the same
write the same rows. What is not there, or lacks a column, is parsed (again): so all of it may be
removed at any time. pyarrow parses; where a range starts and ends is told by row_blocks.py (why not
by a library: benchmarks/README.md).

    STORE / address / fingerprint / file - start - stop .parquet
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ddlflow.data.sources import columnar
from ddlflow.data.sources import source as source_
from ddlflow.data.sources.source import Range, in_pieces
from ddlflow.errors import DdlflowError
from ddlflow.store.files import writing
from ddlflow.store.store import Store, open_store

_TYPES = b"ddlflow.types"  # in a file's metadata: column -> type as it was parsed
# A range smaller than this part of a whole one (256 KiB) is parsed in less time than a file of its
# own is written and opened (measured).
SMALL = 1 / 256

Parse = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class Conversion:
    """Where the ranges of one source are kept, and what of them.

    Attributes:
        place: location of a store that every worker sees, of this source alone.
        names: the columns that all passes together read.
    """

    place: str
    names: tuple[str, ...]


def place_of(store: Store, address: str, fingerprint: str) -> Store:
    """Where a source's ranges are kept; what was kept of it as it was before goes.

    Args:
        store: of all conversions.
        address: of the source, without what changes from day to day, as signatures do.
        fingerprint: of the source.
    """
    of_address = store.at(_digest(address))
    now = _digest(fingerprint)
    for before in {key.partition("/")[0] for key in of_address.list()} - {now}:
        of_address.at(before).remove_all()
    return of_address.at(now)


def batches(
    conversion: Conversion,
    part: Range,
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    parse: Parse,
) -> Iterator[pa.RecordBatch]:
    """The rows of a range: of its Parquet file, which is written first where it is not there.

    Args:
        conversion: where it is kept.
        part: the range.
        names: the wanted columns.
        types: of all columns.
        parse: gives the rows of the range, of those columns, from the text.

    Raises:
        DataError: as ``parse``.
        DdlflowError: the disk is full; or what was kept is damaged, and is removed.
    """
    store, key = open_store(conversion.place), f"{part.file}-{part.start}-{part.stop}.parquet"
    stored = _types(store, key)
    if all(stored.get(name) == str(types[name]) for name in names):
        yield from _read(store, key, names, types)
        return
    same = [name for name, type_ in stored.items() if name in types and type_ == str(types[name])]
    wanted = list(dict.fromkeys([*names, *conversion.names, *same]))
    with writing(f"{conversion.place}/{key}"), store.writing(key) as path:
        for piece in _writing(path, parse(wanted), {name: types[name] for name in wanted}):
            yield piece.select(list(names))


def _writing(
    path: Path, parsed: Iterator[pa.RecordBatch], types: Mapping[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    """Writes each piece to a Parquet file, a row group each, and gives it on."""
    texts = [name for name, type_ in types.items() if pa.types.is_string(type_)]
    said = {_TYPES: json.dumps({name: str(type_) for name, type_ in types.items()})}
    schema = pa.schema(list(types.items())).with_metadata(said)
    # Numbers that were parsed are near random: neither a dictionary nor compression pays for them.
    with pq.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=texts,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for piece in in_pieces(parsed):
            writer.write_batch(piece.cast(schema), row_group_size=piece.num_rows)
            yield piece


def _types(store: Store, key: str) -> dict[str, str]:
    """The types of the columns that are kept of a range, as text; none where nothing is kept."""
    if not store.exists(key):
        return {}
    try:
        found = pq.read_metadata(store.local(key)).metadata or {}
        types: dict[str, str] = json.loads(found.get(_TYPES, b"{}"))
    except (OSError, ValueError):  # it is written again
        return {}
    return types


def _read(
    store: Store, key: str, names: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([(name, types[name]) for name in names])
    try:
        with pa.OSFile(str(store.local(key)), "rb") as file:
            metadata = pq.read_metadata(file)
            groups = range(metadata.num_row_groups)
            rows = source_.rows_of_piece(types)
            found = columnar.parquet_batches(
                file, metadata, groups, names, rows, has_checksums=True
            )
            for batch in found if groups else ():
                yield batch.select(list(names)).cast(schema)  # Parquet has no whole seconds
    except (pa.ArrowException, OSError) as error:
        store.remove(key)
        raise DdlflowError(
            f"{store.location}/{key} is damaged and was removed: "
            f"{str(error).splitlines()[0].rstrip('.')}. Run the same command again."
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
