"""Columns of tensors and sequences as arrays, whatever lists Arrow, pandas or JSON made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.fields import Field
from ddlflow.errors import DataError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tensors:
    """A column of n samples.

    Attributes:
        values: [n, *shape]; of a sequence [m, *shape], the steps of all samples in turn.
        counts: int64 [n] steps of each sample; None where it is no sequence.
        absent: bool [n], samples that are null, or whole numbers with a null among them; None
            where there is none.
    """

    values: Array
    counts: npt.NDArray[np.int64] | None
    absent: Mask | None

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Of a sequence: int64 [n], where the steps of each sample begin."""
        assert self.counts is not None
        ends: npt.NDArray[np.int64] = np.cumsum(self.counts)
        return ends - self.counts

    @property
    def num_missing(self) -> int:
        """Samples that are absent, or have numbers and each of them is NaN."""
        absent = np.zeros((), dtype=bool) if self.absent is None else self.absent
        if self.values.dtype.kind != "f":
            return int(np.count_nonzero(absent))
        has_number = self.by_sample(~np.isnan(self.values))
        has_nan = self.by_sample(np.isnan(self.values))
        return int(np.count_nonzero((has_nan & ~has_number) | absent))

    @property
    def num_infinite(self) -> int:
        """Samples that have a number that is infinite in float32."""
        if self.values.dtype.kind != "f":
            return 0
        with np.errstate(over="ignore"):
            found = self.by_sample(np.isinf(self.values.astype(np.float32, copy=False)))
        return int(np.count_nonzero(found))

    def by_sample(self, of_values: Mask) -> Mask:
        """Whether any number of a sample is marked: bool [n] of bool as ``values``."""
        marked: Mask = np.any(of_values, axis=tuple(range(1, of_values.ndim)))
        if self.counts is None:
            return marked
        found = np.zeros(len(self.counts), dtype=bool)
        found[np.repeat(np.arange(len(self.counts)), self.counts)[marked]] = True
        return found


def read_tensors(array: pa.Array, field: Field) -> Tensors:
    """A column as arrays of the field's dtype and shape. Nulls among floats are NaN.

    Numbers of another width are taken where they are the same numbers.

    Raises:
        DataError: another shape, or numbers that the field's dtype does not hold.
    """
    counts = None
    steps = array
    if field.is_sequence:
        if pa.types.is_null(array.type):
            array = array.cast(pa.list_(pa.null()))
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise _another(array, field)
        offsets = np.asarray(array.offsets, dtype=np.int64)
        steps, counts = array.values.slice(offsets[0], offsets[-1] - offsets[0]), np.diff(offsets)
    flat, nulls = _numbers(steps, field.shape, field, is_sample=not field.is_sequence)
    values = flat.reshape(len(steps), *field.shape)
    absent: Mask = array.is_null().to_numpy(zero_copy_only=False)
    if nulls is not None and field.is_whole:
        by_sample = Tensors(values, counts, None).by_sample(nulls.reshape(values.shape))
        absent = absent | by_sample
    return Tensors(values, counts, absent if absent.any() else None)


def without_rows(schema: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """An empty table of these columns."""

    def empty(kind: pa.DataType) -> pa.Array:
        # Arrow itself makes no array of tensors whose type has a permutation.
        if isinstance(kind, pa.BaseExtensionType):
            return pa.ExtensionArray.from_storage(kind, empty(kind.storage_type))
        return pa.array([], kind)

    return pa.RecordBatch.from_arrays(list(map(empty, schema.values())), names=list(schema))


def sample_bytes(array: pa.Array, field: Field) -> npt.NDArray[np.int64]:
    """How many bytes each sample of a column takes: int64 [n]."""
    if not field.is_sequence:
        return np.full(len(array), field.value_bytes, dtype=np.int64)
    offsets: npt.NDArray[np.int64] = np.asarray(array.offsets, dtype=np.int64)
    return (offsets[1:] - offsets[:-1]) * field.value_bytes


def _numbers(
    array: pa.Array, shape: tuple[int, ...], field: Field, *, is_sample: bool = False
) -> tuple[Array, Mask | None]:
    """The numbers of an array of tensors, flat and in C order, and which of them are null."""
    kind, rows = array.type, len(array)
    size = int(np.prod(shape))
    if isinstance(kind, pa.FixedShapeTensorType):
        order = kind.permutation or list(range(len(kind.shape)))
        if tuple(kind.shape[axis] for axis in order) != shape:
            raise _another(array, field)
        flat = _numbers(array.storage, (size,), field)
        turned = [
            None
            if one is None
            else one.reshape(rows, *kind.shape).transpose(0, *(k + 1 for k in order)).reshape(-1)
            for one in flat
        ]
        assert turned[0] is not None
        return turned[0], turned[1]
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not shape or not (is_list or pa.types.is_fixed_size_list(kind) or pa.types.is_null(kind)):
        if shape:
            raise _another(array, field)
        return _leaves(array, field)
    present = array.drop_null() if array.null_count else array
    if pa.types.is_null(kind):
        values, nulls = np.zeros(0, field.dtype), None
    else:
        values, nulls = _elements(present, shape, field, is_sample=is_sample)
    if not array.null_count:
        return values, nulls
    there = array.is_valid().to_numpy(zero_copy_only=False)
    whole = np.zeros((rows, size), field.dtype)
    if not field.is_whole:
        whole[~there] = np.nan
    whole[there] = values.reshape(-1, size)
    gone = np.ones((rows, size), dtype=bool)
    gone[there] = False if nulls is None else nulls.reshape(-1, size)
    return whole.reshape(-1), gone.reshape(-1)


def _elements(
    array: pa.Array, shape: tuple[int, ...], field: Field, *, is_sample: bool
) -> tuple[Array, Mask | None]:
    """As `_numbers`, of lists without a null one."""
    if pa.types.is_fixed_size_list(array.type):
        length = array.type.list_size
        inner = array.values.slice(array.offset * length, len(array) * length)
        lengths = {length}
    else:
        offsets = np.asarray(array.offsets, dtype=np.int64)
        inner = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        lengths = set(np.diff(offsets).tolist())
    # What Arrow gives pandas of a tensor is flat, so that is what comes back.
    is_flat = is_sample and lengths <= {int(np.prod(shape))} and _is_number(inner.type)
    if lengths - {shape[0]} and not is_flat:
        raise _another(array, field, lengths - {shape[0]})
    return _numbers(inner, () if is_flat else shape[1:], field)


def _leaves(array: pa.Array, field: Field) -> tuple[Array, Mask | None]:
    """Numbers in the field's dtype, and which of them are null."""
    kind = array.type
    if not _is_number(kind):
        raise _another(array, field)
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    if pa.types.is_null(kind):
        array = array.cast(pa.float32())
    given: Array = (array if nulls is None else array.fill_null(0)).to_numpy(zero_copy_only=False)
    values = given
    if given.dtype != np.dtype(field.dtype):
        if field.is_whole and given.dtype.kind == "f":  # what pandas makes of gaps
            is_gap = np.isnan(given)
            nulls = is_gap if nulls is None else nulls | is_gap
            given = np.where(is_gap, 0, given)
        with np.errstate(over="ignore", invalid="ignore"):
            values = given.astype(field.dtype)
        if field.is_whole and (values != given).any():
            shown = given[values != given][0]
            raise DataError(
                f"Column {field.name} holds {shown}, and the model was trained on "
                f"{field.dtype}. Give the numbers as they were in training."
            )
    if nulls is not None and not field.is_whole:
        values = np.where(nulls, np.dtype(field.dtype).type(np.nan), values)
    return values, nulls


def _is_number(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _another(array: pa.Array, field: Field, lengths: set[int] | None = None) -> DataError:
    found = f"lists of {min(lengths)}" if lengths else f"type {array.type}"
    return DataError(
        f"Column {field.name} holds {found}, where {field.shown} is expected. Give tensors of that "
        "shape in every row."
    )
