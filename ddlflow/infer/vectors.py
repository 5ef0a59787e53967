"""pyspark.ml's vectors as Arrow has them (``data/sources/export_part.py`` makes lists of them)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.errors import DataError

_VECTOR = ["type", "size", "indices", "values"]  # how Spark stores pyspark.ml's vectors


def is_vectors(array: pa.Array) -> bool:
    """Whether a column is one of pyspark.ml's vectors, as VectorAssembler makes them."""
    type_ = array.type
    is_struct = pa.types.is_struct(type_)
    return is_struct and [type_.field(k).name for k in range(type_.num_fields)] == _VECTOR


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
