"""Tables given from Python: kept once under the storage, each under the hash of what it holds.

A kept table is a source like any other file. The same rows are the same file, whichever package
had them, so stages that were done with them are found done.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from ddlflow.data.sources.frames import batches, is_frame, table_of
from ddlflow.data.sources.source import PIECE_ROWS
from ddlflow.errors import DataError, InputError, SpecError
from ddlflow.spec.data import Data
from ddlflow.store.site_storage import remove_empty, storage_errors
from ddlflow.store.store import Store, open_store
from ddlflow.store.stored import StoredFile

FOLDER = "tables"
_KEPT = re.compile(rf".*/{FOLDER}/[0-9a-f]{{64}}\.arrow")
# Where a pipeline names a source.
PLACES = (("data", "source"), ("data", "test_source"), ("infer", "source"))


def placed(pipeline: Mapping[str, Any], place: Callable[[Any], str]) -> dict[str, Any]:
    """The values of a pipeline, with each table that is a source replaced by its place."""
    found = dict(pipeline)
    for section, key in PLACES:
        values = found.get(section)
        if isinstance(values, Mapping) and is_frame(values.get(key)):
            found[section] = {**values, key: place(values[key])}
    return found


@contextmanager
def keeping(storage: Path, bucket: Store | None = None) -> Iterator[Callable[[Any], str]]:
    """Yields what keeps a table and says where; where the input is wrong, nothing is left of it.

    Args:
        storage: this machine's folder of it.
        bucket: the storage, where it is an object store: the workers read the table there.
    """
    is_new = not storage.exists()
    written: list[Path] = []
    sent: list[StoredFile] = []

    def keep(frame: Any) -> str:
        with storage_errors(storage):
            path, is_written = _keep(frame, storage / FOLDER)
        written.extend([path] if is_written else [])
        if bucket is None:
            return str(path)
        file = StoredFile(bucket.at(FOLDER), path.name)
        with storage_errors(bucket.location):
            if not file.exists():
                with file.made() as temporary:
                    shutil.copyfile(path, temporary)
                sent.append(file)
        return file.name

    try:
        yield keep
    except InputError:
        for path in written:
            path.unlink(missing_ok=True)
        for file in sent:
            file.remove()
        with suppress(OSError):
            (storage / FOLDER).rmdir()
        if is_new:
            remove_empty(storage)
        raise


def _keep(frame: Any, folder: Path) -> tuple[Path, bool]:
    """Writes a table unless it is there; returns its path, and whether it was written."""
    table = table_of(frame)
    if not table.num_rows or not table.num_columns:
        raise DataError(
            f"The table that was given has {table.num_rows} rows and {table.num_columns} columns. "
            "Give one with rows."
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        _write(table, temporary)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = folder / f"{digest}.arrow"
        is_there = path.exists()
        if not is_there:
            os.utime(temporary, (0, 0))  # its name says what it holds, whenever it was written
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, not is_there


def _write(table: pa.Table, path: Path) -> None:
    """Writes a table in batches of one piece: its ranges depend on its rows alone."""
    pieces = batches(table, PIECE_ROWS)
    first = next(pieces)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for piece in pieces:
            writer.write_batch(piece)


def check_there(data: Data, run_id: str) -> None:
    """Whether the tables that a recorded run was given are still kept.

    Raises:
        SpecError: one is gone, with what to do.
    """
    for key, location in (("source", data.source), ("test_source", data.test_source)):
        if not isinstance(location, str) or not _KEPT.fullmatch(location):
            continue
        folder, _, name = location.rpartition("/")
        if not open_store(folder).exists(name):
            raise SpecError(
                f"Run {run_id} was given data.{key} as a table from Python, kept as {location}, "
                "which is gone. Run ddlflow.run with that table and this storage once more, which "
                f"keeps it there again; or write it to a file and add --set data.{key}=FILE."
            )
