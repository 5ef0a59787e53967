"""How a batch of a table becomes numbers, in training and in inference alike.

``Columns`` knows the vocabularies and the classes, found by the first pass over the source, and
travels with the trained model.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.matrix import Float32, interleave
from ddlflow.data.roles import Labels
from ddlflow.data.schema import meant
from ddlflow.errors import DataError

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical feature: codes 1.. are ``values``; 0 is all else: rare, unseen, missing."""

    name: str
    kind: Literal["text", "integer"]
    values: tuple[str, ...] | tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.values) + 1


@dataclass(frozen=True, slots=True)
class Label:
    """The label: ``classes`` in the order of their indices; none for a regression."""

    name: str
    kind: Labels
    classes: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of n rows as numbers.

    Attributes:
        features: float32 [n, F], C-contiguous; missing and infinite values are NaN.
        categories: int32 [n, C]; None where C is 0.
        label: float32 [n] (binary, regression) or int64 [n] (multiclass); None if not asked for.
        missing: how many numeric values were missing.
        infinite: how many were infinite (beyond float32's range counts as infinite).
    """

    features: Float32
    categories: npt.NDArray[np.int32] | None
    label: npt.NDArray[Any] | None
    missing: int
    infinite: int


@dataclass(frozen=True, slots=True)
class Columns:
    """How a table becomes a model's input. Part of the trained model.

    Attributes:
        numeric: names of the numeric features, in the order of the matrix's columns.
        categories: the categorical features, likewise.
        label: the label.
    """

    numeric: tuple[str, ...]
    categories: tuple[Category, ...]
    label: Label

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and scalars."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Columns":
        """The inverse of ``to_json``."""
        return cls(
            numeric=tuple(value["numeric"]),
            categories=tuple(
                Category(c["name"], c["kind"], tuple(c["values"])) for c in value["categories"]
            ),
            label=Label(
                value["label"]["name"], value["label"]["kind"], tuple(value["label"]["classes"])
            ),
        )

    def encode(self, batch: pa.RecordBatch, *, with_label: bool = False) -> Encoded:
        """Turns a batch into numbers, as in training. Other columns and their order do not matter.

        Args:
            batch: n rows; a pandas frame goes through ``pa.RecordBatch.from_pandas``.
            with_label: read the label too; otherwise it may be absent.

        Raises:
            DataError: a column is missing, or holds what cannot be turned into numbers.
        """
        rows = batch.num_rows
        arrays = [float_values(_column(batch, name), name) for name in self.numeric]
        missing = infinite = 0
        for index, values in enumerate(arrays):
            nan = int(np.count_nonzero(np.isnan(values)))
            finite = int(np.count_nonzero(np.isfinite(values)))
            missing += nan
            infinite += rows - nan - finite
            if rows - nan - finite:
                arrays[index] = np.where(np.isinf(values), np.float32(np.nan), values)
        features = np.empty((rows, len(arrays)), dtype=np.float32)
        interleave(arrays, features)
        codes: npt.NDArray[np.int32] | None = None
        if self.categories:
            codes = np.empty((rows, len(self.categories)), dtype=np.int32)
            for index, category in enumerate(self.categories):
                codes[:, index] = category_codes(_column(batch, category.name), category)
        label = label_values(_column(batch, self.label.name), self.label) if with_label else None
        return Encoded(features, codes, label, missing, infinite)


def float_values(array: pa.Array, name: str) -> Float32:
    """A numeric column as float32 [n]: null is NaN, infinities stay.

    Whole numbers above 2^24 and decimals are rounded to the nearest float32.

    Raises:
        DataError: the column is no number.
    """
    with np.errstate(over="ignore"):  # beyond float32: infinite, and counted as such
        converted: Float32 = number_values(array, name).astype(np.float32, copy=False)
    return converted


def number_values(array: pa.Array, name: str) -> npt.NDArray[Any]:
    """As ``float_values``, in the type that the column has: without a copy where it has no null."""
    array = _plain(array)
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
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def category_codes(array: pa.Array, category: Category) -> npt.NDArray[np.int32]:
    """Codes int32 [n] of a categorical column.

    Raises:
        DataError: a category of whole numbers holds something else.
    """
    values = category_values(array, category.name, category.kind)
    known = pa.array(category.values, type=values.type)
    found = pc.fill_null(pc.index_in(values, value_set=known, skip_nulls=True), -1)
    codes: npt.NDArray[np.int32] = found.to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return codes


def text_or_whole(array: pa.Array, *, is_text: bool) -> pa.Array:
    """A column as text or int64; NaN becomes null.

    Raises:
        pyarrow.ArrowInvalid: a number that is not whole.
    """
    array = _plain(array)
    if is_text:
        return array if pa.types.is_string(array.type) else array.cast(pa.string())
    if pa.types.is_floating(array.type):  # pandas turns whole numbers with gaps into floats
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array.cast(pa.int64())


def category_values(array: pa.Array, name: str, kind: str) -> pa.Array:
    """A categorical column as text or int64; NaN becomes null.

    Raises:
        DataError: a category of whole numbers holds something else.
    """
    try:
        return text_or_whole(array, is_text=kind == "text")
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Category {name} holds something else than whole numbers: {error}. "
            "Round it, turn it into text, or take it out of data.categorical."
        ) from error


def label_values(array: pa.Array, label: Label) -> npt.NDArray[Any]:
    """The label [n]: float32 for binary and regression, int64 for multiclass.

    Raises:
        DataError: a label that is missing, or of no known class.
    """
    if label.kind == "regression":
        return float_values(array, label.name)
    keys = label_keys(array)
    if pa.types.is_null(keys.type):
        raise DataError(f"Label {label.name} is missing in every row.")
    known = label.classes
    if pa.types.is_string(keys.type) != isinstance(known[0], str):
        raise DataError(
            f"Label {label.name} is of type {array.type}; the classes are {_shown(known)}."
        )
    dtype = np.float32 if label.kind == "binary" else np.int64
    if len(known) == 2 and not keys.null_count and not pa.types.is_string(keys.type):
        values = keys.to_numpy(zero_copy_only=False)
        is_second = values == known[1]
        if (is_second | (values == known[0])).all():  # faster than a look-up of each value
            second: npt.NDArray[Any] = is_second.astype(dtype)
            return second
    indices = pc.index_in(keys, value_set=pa.array(known).cast(keys.type, safe=False))
    if indices.null_count:
        value = keys.filter(indices.is_null())[0].as_py()
        raise DataError(f"Label {label.name} holds {value!r}; the classes are {_shown(known)}.")
    encoded: npt.NDArray[Any] = indices.to_numpy(zero_copy_only=False).astype(dtype)
    return encoded


def label_keys(array: pa.Array) -> pa.Array:
    """A class label in one of four types: bool, int64, float64 or text."""
    array = _plain(array)
    type_ = array.type
    if pa.types.is_boolean(type_) or pa.types.is_string(type_) or pa.types.is_null(type_):
        return array
    if pa.types.is_large_string(type_):
        return array.cast(pa.string())
    return array.cast(pa.int64() if pa.types.is_integer(type_) else pa.float64())


def missing_mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    """True [n] where a value is null or NaN."""
    mask: npt.NDArray[np.bool_] = pc.is_null(_plain(array), nan_is_null=True).to_numpy(
        zero_copy_only=False
    )
    return mask


def _shown(classes: tuple[Value, ...]) -> str:
    return ", ".join(str(c) for c in classes[:10]) + (", ..." if len(classes) > 10 else "")


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise DataError(
            f"The source lacks column {name}, which the model needs."
            f"{meant(name, batch.schema.names)}"
        )
    return batch.column(index)
