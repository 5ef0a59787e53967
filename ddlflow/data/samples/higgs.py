"""UCI's HIGGS: 11 million simulated collisions, fetched and turned into Parquet.

``fetch`` downloads HIGGS.csv.gz; ``to_parquet`` streams it into parts in bounded memory. The last
500,000 rows are the customary test set (Baldi et al. 2014, arXiv:1402.4735) and get a folder of
their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ddlflow.data.samples.download import OnEvent, Progress, download
from ddlflow.data.samples.masses import FEATURES, LABEL
from ddlflow.data.samples.parts import ROW_GROUP_ROWS, refuse_strangers, stands, write_part_file
from ddlflow.errors import DataError

# Source of size and hash: tensorflow/datasets, tensorflow_datasets/url_checksums/higgs.txt; the
# HIGGS loader of Ludwig and others state the same hash for the same address.
URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz"
SIZE = 2_816_407_858  # bytes
SHA256 = "ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698"
TOTAL_ROWS, TEST_ROWS = 11_000_000, 500_000

PART_ROWS = 500_000  # about 56 MB of Parquet
BLOCK_BYTES = 8 << 20  # of CSV text read at once
SCHEMA = pa.schema([pa.field(name, pa.float32()) for name in (LABEL, *FEATURES)])
_FEW_VALUES = [LABEL, *(name for name in FEATURES if name.endswith("b-tag"))]


def fetch(
    out: str | Path,
    *,
    url: str = URL,
    size: int = SIZE,
    sha256: str = SHA256,
    on_event: OnEvent,
    backoff_s: float = 1.0,
) -> Path:
    """Downloads HIGGS.csv.gz into folder ``out``, going on where it was stopped.

    See ``ddlflow.data.samples.download`` for the events and the errors.
    """
    target = Path(out) / "HIGGS.csv.gz"
    return download(url, target, size=size, sha256=sha256, on_event=on_event, backoff_s=backoff_s)


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    rows: int
    identity: str


def to_parquet(
    csv_gz: str | Path,
    out: str | Path,
    on_event: OnEvent,
    *,
    total_rows: int = TOTAL_ROWS,
    test_rows: int = TEST_ROWS,
) -> list[Path]:
    """Turns HIGGS.csv.gz into ``out/train/*.parquet`` and ``out/test/*.parquet`` (``SCHEMA``).

    The last ``test_rows`` rows go to test. One pass, in the memory of some blocks; parts that stand
    are not written again. Emits progress in rows.

    Returns:
        The files, in the order of their rows.

    Raises:
        DataError: no or another number of rows, a column too many, text, a truncated file, a folder
            that cannot be written or holds other files. What this call wrote is removed, unless the
            disk was full.
    """
    source = Path(csv_gz)
    parts = _plan(source, Path(out), total_rows, test_rows)
    for folder in sorted({part.path.parent for part in parts}):
        refuse_strangers(folder, {part.path: part.identity for part in parts})
    missing = {part.path for part in parts if not stands(part.path, part.identity)}
    if not missing:
        return [part.path for part in parts]

    progress = Progress(on_event, total_rows)
    written: list[Path] = []
    try:
        rows = _Rows(source)
        for part in parts:
            groups = _groups(rows, part.rows, progress)
            if part.path in missing:
                write_part_file(part.path, groups, SCHEMA, part.identity, few_values=_FEW_VALUES)
                written.append(part.path)
            else:
                for _ in groups:
                    pass
        if rows.take(1).num_rows:
            raise _WrongSourceError(f"more than {total_rows:,} rows")
    except _WrongSourceError as error:
        for path in written:
            path.unlink()
        raise DataError(
            f"{source} is not HIGGS.csv.gz: {error}; expected {total_rows:,} rows of a label and "
            f"{len(FEATURES)} numbers. Fetch it again."
        ) from error
    return [part.path for part in parts]


class _WrongSourceError(Exception):
    """The file is not what it should be."""


class _Rows:
    """The rows of a CSV file in turn, as many at a time as one asks for."""

    def __init__(self, source: Path) -> None:
        self.done = 0
        self._kept = SCHEMA.empty_table()
        self._batches = self._read(source)

    @staticmethod
    def _read(source: Path) -> Iterator[pa.RecordBatch]:
        try:
            with (
                pa.input_stream(str(source), compression="gzip") as stream,
                pyarrow.csv.open_csv(
                    stream,
                    read_options=pyarrow.csv.ReadOptions(
                        column_names=SCHEMA.names, block_size=BLOCK_BYTES
                    ),
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types=SCHEMA, null_values=[], strings_can_be_null=False
                    ),
                ) as reader,
            ):
                yield from reader
        except (OSError, pa.ArrowInvalid) as error:
            raise _WrongSourceError(str(error)) from error

    def take(self, rows: int) -> pa.Table:
        """The next ``rows`` rows; fewer at the end of the file."""
        tables = [self._kept]
        found = self._kept.num_rows
        while found < rows and (batch := next(self._batches, None)) is not None:
            tables.append(pa.Table.from_batches([batch], schema=SCHEMA))
            found += batch.num_rows
        table = pa.concat_tables(tables)
        self._kept = table.slice(rows)
        self.done += min(found, rows)
        return table.slice(0, rows)


def _groups(rows: _Rows, num_rows: int, progress: Progress) -> Iterator[pa.Table]:
    while num_rows:
        table = rows.take(min(ROW_GROUP_ROWS, num_rows))
        if table.num_rows < min(ROW_GROUP_ROWS, num_rows):
            raise _WrongSourceError(f"{rows.done:,} rows")
        num_rows -= table.num_rows
        progress.show(rows.done)
        yield table


def _plan(source: Path, out: Path, total_rows: int, test_rows: int) -> list[_Part]:
    if not source.is_file():
        raise DataError(f"{source} is not there; expected HIGGS.csv.gz. Fetch it first.")
    parts = []
    for name, first, end in (
        ("train", 0, total_rows - test_rows),
        ("test", total_rows - test_rows, total_rows),
    ):
        for number, start in enumerate(range(first, end, PART_ROWS)):
            rows = min(PART_ROWS, end - start)
            identity = {"higgs": source.stat().st_size, "first_row": start, "rows": rows}
            path = out / name / f"part-{number:06d}.parquet"
            parts.append(_Part(path, rows, json.dumps(identity)))
    return parts
