"""Parquet files that are either whole or not there, and that can be known again.

A part's identity is a text that says what its bytes depend on. It is kept in the file, so a command
that was stopped and is started again writes only what is missing, and files of another make in the
same folder are refused before anything is written.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ddlflow.errors import DataError
from ddlflow.store.files import remove_leftovers, temporary_for

IDENTITY = b"ddlflow.part"
ROW_GROUP_ROWS = 50_000  # some MB of 29 columns: enough row groups for many workers


def stands(path: Path, identity: str) -> bool:
    """Is this very part there, whole?"""
    return _identity(path) == identity


def refuse_strangers(folder: Path, identities: Mapping[Path, str]) -> None:
    """Checks that ``folder`` holds no Parquet file but these parts. Writes nothing.

    Raises:
        DataError: it is no folder, or holds another file, which would be read along with the parts.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder. Name another one.")
    for path in sorted(folder.glob("*.parquet")):
        if path not in identities or _identity(path) not in {None, identities[path]}:
            raise DataError(
                f"{path} is there and is not of the rows asked for now. "
                "Name an empty folder, or delete what is in this one."
            )


def write_part_file(
    path: Path,
    groups: Iterable[pa.Table],
    schema: pa.Schema,
    identity: str,
    *,
    few_values: list[str],
) -> None:
    """Writes tables as row groups, under a name of its own until the file is whole.

    Args:
        groups: tables of ``schema``, each of at most ``ROW_GROUP_ROWS`` rows.
        few_values: the columns that repeat their values: these become dictionaries. Measured
            numbers do not compress, so nothing else is tried.

    Raises:
        DataError: the folder cannot be written, or the disk is full; nothing of the part is left.
    """
    schema = schema.with_metadata({IDENTITY: identity})
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(
            temporary, schema, compression="none", use_dictionary=few_values
        ) as file:
            for table in groups:
                file.write_table(table.cast(schema), row_group_size=ROW_GROUP_ROWS)
        temporary.replace(path)
        remove_leftovers(path.parent)
    except OSError as error:
        if not stands(path, identity):  # else another writer of the same part was first
            raise DataError(
                f"{path} cannot be written: {error}. Free space or name another folder; "
                "the same command goes on from here."
            ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _identity(path: Path) -> str | None:
    """What a file says it is; None where there is none, or none that can be read."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return str(metadata.get(IDENTITY, b"another file").decode())
