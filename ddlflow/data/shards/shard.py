"""A shard: one file of rows as tensors, written once, mapped without a copy.

The file is an uncompressed Arrow IPC file with one record batch; its columns are fixed-shape
tensors (Arrow's canonical extension type), so any Arrow reader understands it.
"""

import contextlib
import errno
import hashlib
import mmap
import resource
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.errors import DataError, DdlflowError
from ddlflow.store.files import replacing
from ddlflow.store.stored import StoredFile

Tensor = npt.NDArray[Any]


class _Hashing:
    """A file to write to that hashes what passes: the bytes are read from memory once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hash.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True  # the file itself is closed by who opened it

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_shard(file: StoredFile | Path, tensors: dict[str, Tensor]) -> str:
    """Writes a shard, whole or not at all.

    Args:
        file: to write.
        tensors: name -> C-contiguous array [n, ...], all with the same n.

    Returns:
        SHA-256 of the file.

    Raises:
        DdlflowError: the disk is full or failed; nothing is left of the file.
        InputError: the storage may not be written.
    """
    columns = {name: _column(tensor) for name, tensor in tensors.items()}
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    making = replacing(file) if isinstance(file, Path) else file.made()
    with making as temporary, temporary.open("wb") as opened:
        hashing = _Hashing(opened)
        with pa.PythonFile(hashing, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as out:
            out.write_batch(batch)
        return hashing.hexdigest()


def _column(tensor: Tensor) -> pa.Array:
    """The tensor's rows as an Arrow column, without a copy."""
    rows, shape = tensor.shape[0], tensor.shape[1:]
    type_ = pa.fixed_shape_tensor(pa.from_numpy_dtype(tensor.dtype), list(shape))
    flat = pa.Array.from_buffers(type_.value_type, tensor.size, [None, pa.py_buffer(tensor)])
    storage = pa.Array.from_buffers(type_.storage_type, rows, [None], children=[flat])
    return pa.ExtensionArray.from_storage(type_, storage)


def map_shard(path: Path) -> dict[str, Tensor]:
    """Maps a shard: name -> array [n, ...], without a copy.

    The pages are shared with every process that maps the file. The arrays are writable, as torch
    wants them; a write goes to this process's own copy of the page, never to the file.

    Raises:
        DataError: the file is missing or damaged.
        DdlflowError: more files are open than this process may have.
    """
    try:
        mapped = _mapped(path)
        whole = pa.py_buffer(mapped)
        batch = pa.ipc.open_file(whole).get_batch(0)
        tensors: dict[str, Tensor] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            buffer = column.storage.values.buffers()[1]
            shape = (batch.num_rows, *column.type.shape)
            dtype = column.type.value_type.to_pandas_dtype()
            if batch.num_rows == 0:  # values of sequences without a step
                tensors[name] = np.empty(shape, dtype)
                continue
            tensors[name] = np.frombuffer(
                mapped,
                dtype=dtype,
                count=int(np.prod(shape)),
                offset=buffer.address - whole.address,
            ).reshape(shape)
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is missing or damaged: {error}. Prepare the data again with --fresh."
        ) from error
    return tensors


def _mapped(path: Path) -> mmap.mmap:
    """The file as memory. Each mapping keeps a descriptor, which Python gives no way to close.

    So where they run out, the limit is raised as far as the system lets any process raise it.
    """
    try:
        return _mapped_now(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS takes no unlimited one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _mapped_now(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise DdlflowError(
            f"{path} cannot be opened: this process may have {hard} files open. Raise the limit "
            "(ulimit -n), or prepare the data from fewer, larger files or row groups."
        ) from error


def _mapped_now(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def sha256(path: Path) -> str:
    """SHA-256 of a file, to check a shard against its manifest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
