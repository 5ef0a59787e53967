"""Columns of a table as numbers: null is NaN, and what a column is shifted by is taken off."""

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.convert import numbers_of
from ddlflow.data.matrix import Float32
from ddlflow.data.offsets import Float64, Number
from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError

EXACT = 2**53  # up to here float64 holds each whole number


def float_values(array: pa.Array, name: str, offset: Number = 0) -> Float32:
    """A numeric column as float32 [n], less its offset: null is NaN, infinities stay.

    Whole numbers above 2^24 and decimals are rounded to the nearest float32.

    Raises:
        DataError: the column is no number.
    """
    with np.errstate(over="ignore"):  # beyond float32: infinite, and counted as such
        converted: Float32 = number_values(array, name, offset).astype(np.float32, copy=False)
    return converted


def number_values(array: pa.Array, name: str, offset: Number = 0) -> npt.NDArray[Any]:
    """As ``float_values``, in the type that the column has, without a copy where it has no null;
    float64 where there is an offset.
    """
    array = plain(array)
    array = numbers_of(_whole(array) if abs(offset) >= EXACT else array, name)
    type_ = array.type
    if pa.types.is_boolean(type_):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(type_):
        array = array.cast(pa.float64())
    elif pa.types.is_null(type_):
        return np.full(len(array), np.nan, dtype=np.float32)
    elif not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        shown = next((repr(v) for v in array.slice(0, 100).to_pylist() if v is not None), type_)
        raise DataError(
            f"Column {name} holds {shown} (type {type_}), where numbers are expected. "
            "Give the numbers, or leave the value out if it is missing."
        )
    if offset:
        return shifted(array, offset)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _whole(array: pa.Array) -> pa.Array:
    """Texts that are all whole numbers of 64 bits as such: float64 would blur large ones."""
    if kind_of(array.type) == "text":
        text = pc.utf8_trim_whitespace(array.cast(pa.string()))
        for type_ in (pa.int64(), pa.uint64()):
            with contextlib.suppress(pa.ArrowInvalid):
                return text.cast(type_)
    return array


def shifted(array: pa.Array, offset: Number) -> Float64:
    """Numbers less an offset, float64 [n]; null is NaN. Whole numbers are subtracted as such."""
    less: Float64 = array.to_numpy(zero_copy_only=False).astype(np.float64) - offset
    if not pa.types.is_integer(array.type) or offset != int(offset):
        return less
    whole = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    # Modulo 2^64, so that unsigned numbers are right too: exact where the difference is in range.
    exact = (whole.view(np.uint64) - np.uint64(int(offset) % 2**64)).view(np.int64)
    return np.where(np.abs(less) < 2.0**62, exact.astype(np.float64), less)


def plain(array: pa.Array) -> pa.Array:
    """A dictionary's values in place of its codes."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
