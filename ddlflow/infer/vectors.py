"""What Spark hands over as Arrow, in the types that files hold the same values in."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.errors import DataError

_VECTOR = ["type", "size", "indices", "values"]  # how Spark stores pyspark.ml's vectors
_SPARSE = 0


def is_vectors(array: pa.Array) -> bool:
    """Whether a column is one of pyspark.ml's vectors, as VectorAssembler makes them."""
    type_ = array.type
    is_struct = pa.types.is_struct(type_)
    return is_struct and [type_.field(k).name for k in range(type_.num_fields)] == _VECTOR


def dense(vectors: pa.StructArray) -> pa.ListArray:
    """pyspark.ml's vectors, dense and sparse ones, as lists of their numbers."""
    kinds, sizes, indices, values = vectors.flatten()
    if not pc.any(pc.equal(kinds, _SPARSE)).as_py():
        return values
    is_sparse = pc.fill_null(pc.equal(kinds, _SPARSE), False).to_numpy(zero_copy_only=False)
    counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    lengths = np.where(is_sparse, pc.fill_null(sizes, 0).to_numpy(), counts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = indices.filter(pa.array(is_sparse)).flatten()
    column[is_sparse[row]] = places.to_numpy(zero_copy_only=False)
    numbers = np.zeros(offsets[-1])
    numbers[offsets[row] + column] = values.flatten().to_numpy(zero_copy_only=False)
    mask = kinds.is_null() if kinds.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(numbers), mask=mask)


def spread(vectors: pa.ListArray, names: Sequence[str]) -> list[pa.Array]:
    """Vectors' numbers as columns; null where the vector is.

    Raises:
        DataError: a vector of another length.
    """
    lengths = pc.list_value_length(vectors).drop_null()
    others = lengths.filter(pc.not_equal(lengths, len(names)))
    if len(others):
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise DataError(
            f"A vector holds {others[0]} numbers, and the model reads {len(names)} columns "
            f"({shown}). Give the vectors that it was trained on."
        )
    valid = vectors.is_valid().to_numpy(zero_copy_only=False)
    numbers = np.full((len(vectors), len(names)), np.nan)
    numbers[valid] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(names))
    return [pa.array(column) for column in np.ascontiguousarray(numbers.T)]


def canonical(array: pa.Array) -> pa.Array:
    """Times with a zone in UTC: the session's zone is no part of them."""
    type_ = array.type
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        return array.cast(pa.timestamp(type_.unit, "UTC"))
    return array.cast(pa.string()) if pa.types.is_large_string(type_) else array
