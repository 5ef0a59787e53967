"""Small ranges of a source are prepared in turn as one: they share pieces, and so shards.

A file of a hundred rows, or the last row group of a file, is a range of its own. Tens of thousands
of them would be as many tasks of milliseconds, and three times as many shards. So neighbouring
ranges that are small are put together, as many as one piece holds. What is small depends on the
source alone; a range that is not stays apart, with the shards that it has always had.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby

import pyarrow as pa

from ddlflow.data.sources.source import Range, Source, in_pieces, read

# A range with less than this part of a piece (or, of text, of a range) is small: 16,384 rows, or
# 4 MiB. A task of so many rows of 28 columns takes 15 ms (measured), of which a third is its own
# files'; larger ones gain less than that from sharing.
SMALL = 16


def group_small_ranges(source: Source, ranges: Sequence[Range]) -> list[tuple[Range, ...]]:
    """The ranges of a source in row order, small neighbours together."""
    found: list[tuple[Range, ...]] = []
    held: list[Range] = []
    size = 0.0
    for part in ranges:
        own = source.share(part)
        is_small = own * SMALL < 1
        if held and (not is_small or size + own > 1):
            found.append(tuple(held))
            held, size = [], 0.0
        if is_small:
            held.append(part)
            size += own
        else:
            found.append((part,))
    return [*found, tuple(held)] if held else found


def read_in_turn(
    source: Source, ranges: Sequence[Range], columns: Sequence[str], range_rows: list[int]
) -> Iterator[pa.RecordBatch]:
    """The rows of ranges, one after the other, in pieces as ``read`` has them.

    A piece ends where a file has a column in another type than the file before: each is read as
    it is written.

    Args:
        source: with the files of the ranges.
        ranges: in row order.
        columns: names in ``source.schema``.
        range_rows: [ranges] the rows of each are added to it.

    Raises:
        DataError: as ``read``.
    """

    def rows_of(number: int) -> Iterator[pa.RecordBatch]:
        for batch in read(source, ranges[number], columns):
            range_rows[number] += batch.num_rows
            yield batch

    batches = chain.from_iterable(map(rows_of, range(len(ranges))))
    if len(ranges) == 1:
        yield from batches
        return
    for _, alike in groupby(batches, key=lambda batch: batch.schema):
        yield from in_pieces(alike)
