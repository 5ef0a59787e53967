"""How a batch of a table becomes numbers, in training and in inference alike.

``Columns`` knows the vocabularies and the classes, found by the first pass over the source, and
travels with the trained model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.convert import text_or_whole, whole_of, words_of
from ddlflow.data.fields import Field, input_names
from ddlflow.data.matrix import Float32, interleave
from ddlflow.data.numbers import EXACT, float_values, plain
from ddlflow.data.offsets import Number
from ddlflow.data.roles import Labels
from ddlflow.data.sources.derive import read_by
from ddlflow.data.sources.schema import meant
from ddlflow.data.sources.trained_types import as_parsed, read_back
from ddlflow.data.tensors import Tensors, read_tensors, without_rows
from ddlflow.errors import DataError

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical feature: codes 1.. are ``values``; 0 is all else: rare, unseen, missing."""

    name: str
    kind: Literal["text", "integer"]
    values: tuple[str, ...] | tuple[int, ...]
    rest: float = 0.0  # the share of the source's rows whose code is 0

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.values) + 1


@dataclass(frozen=True, slots=True)
class Label:
    """The label: ``classes`` in the order of their indices, none for a regression, whose
    ``offset`` is taken off before it becomes float32.
    """

    name: str
    kind: Labels
    classes: tuple[Value, ...] = ()
    offset: Number = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of n rows as numbers.

    Attributes:
        features: float32 [n, F], C-contiguous, less the columns' offsets; missing and infinite
            values are NaN.
        categories: int32 [n, C]; None where C is 0.
        label: float32 [n] (binary; regression, less its offset) or int64 [n] (multiclass); None if
            not asked for.
        missing: by column, how many values were null or NaN; of tensors, how many have no number.
        infinite: by numeric column, how many were infinite (so is what float32 cannot hold); of
            tensors, how many have such a number.
        unseen: by category, how many values are not in its vocabulary.
        tensors: by field, those of the rows.
        absent: bool [n], rows without one of the tensors, of which nothing can be said; None: none.
    """

    features: Float32
    categories: npt.NDArray[np.int32] | None
    label: npt.NDArray[Any] | None
    missing: dict[str, int]
    infinite: dict[str, int]
    unseen: dict[str, int]
    tensors: dict[str, Tensors] = field(default_factory=dict)
    absent: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """How a table becomes a model's input. Part of the trained model.

    Attributes:
        numeric: names of the numeric features, in the order of the matrix's columns.
        categories: the categorical features, likewise.
        label: the label.
        types: what the columns that the model reads were in the source (``known.written``).
        derive: the features that are computed, with their expressions, and what these read.
        offsets: what is taken off a numeric feature before it becomes float32, where that would
            not resolve it (``ddlflow.data.offsets``).
        tensors: the features that are tensors or sequences, each a field of its own.
    """

    numeric: tuple[str, ...]
    categories: tuple[Category, ...]
    label: Label
    types: Mapping[str, str] = field(default_factory=dict)
    derive: Mapping[str, str] = field(default_factory=dict)
    offsets: dict[str, Number] = field(default_factory=dict)
    tensors: tuple[Field, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and scalars."""
        found = asdict(self)
        if not self.tensors:  # a table is described as it was before there were any
            del found["tensors"]
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Columns":
        """The inverse of ``to_json``."""
        return cls(
            numeric=tuple(value["numeric"]),
            categories=tuple(
                Category(c["name"], c["kind"], tuple(c["values"]), c["rest"])
                for c in value["categories"]
            ),
            label=Label(**value["label"] | {"classes": tuple(value["label"]["classes"])}),
            types=value["types"],
            derive=value["derive"],
            offsets=dict(value["offsets"]),
            tensors=tuple(map(Field.from_json, value.get("tensors", ()))),
        )

    @property
    def inputs(self) -> list[str]:
        """The names of a batch's input fields, in the order in which models get them."""
        named = (("features", self.has_features), ("categories", self.categories))
        return [*(name for name, there in named if there), *input_names(self.tensors)]

    @property
    def has_features(self) -> bool:
        """Whether a batch has ``features``: a table has them always."""
        return bool(self.numeric) or not self.tensors

    @property
    def features(self) -> list[str]:
        """The columns that a model is called with."""
        categories = (category.name for category in self.categories)
        return [*self.numeric, *categories, *(one.name for one in self.tensors)]

    def parsed(self, *, are_plain: bool = True) -> dict[str, pa.DataType]:
        """What a text file's columns are to be parsed as, to be read as in training.

        Args:
            are_plain: numbers stand there with a decimal point and no sign between thousands. Then
                whole numbers that float64 would blur are parsed as text, and are exact.
        """
        known = self.known
        whole = [c.name for c in self.categories if c.kind == "integer"]
        if are_plain:
            large = [name for name, offset in self.offsets.items() if abs(offset) >= EXACT]
            whole += [name for name in large if pa.types.is_integer(known.get(name, pa.null()))]
        return as_parsed(known, whole, read_by(self.derive))

    @property
    def known(self) -> dict[str, pa.DataType]:
        """The types that the columns had in training."""
        return {name: read_back(text) for name, text in self.types.items()}

    def check_types(self, schema: Mapping[str, pa.DataType]) -> None:
        """Whether columns of these types can be encoded: told before any row is read.

        Raises:
            DataError: a column of a type that says nothing of what the model was trained on.
        """
        names = [name for name in self.features if name in schema]
        self.encode(without_rows({name: schema[name] for name in names}))

    def encode(self, batch: pa.RecordBatch, *, with_label: bool = False) -> Encoded:
        """Turns a batch into numbers, as in training. Other columns and their order do not matter.

        Args:
            batch: n rows; a pandas frame goes through ``pa.RecordBatch.from_pandas``.
            with_label: read the label too; otherwise it may be absent.

        Raises:
            DataError: a column is missing, or holds what cannot be turned into numbers.
        """
        rows = batch.num_rows
        arrays = [
            float_values(_column(batch, name), name, self.offsets.get(name, 0))
            for name in self.numeric
        ]
        missing: dict[str, int] = {}
        infinite: dict[str, int] = {}
        unseen: dict[str, int] = {}
        for index, (name, values) in enumerate(zip(self.numeric, arrays, strict=True)):
            nan = int(np.count_nonzero(np.isnan(values)))
            finite = int(np.count_nonzero(np.isfinite(values)))
            missing[name] = nan
            infinite[name] = rows - nan - finite
            if infinite[name]:
                arrays[index] = np.where(np.isinf(values), np.float32(np.nan), values)
        features = np.empty((rows, len(arrays)), dtype=np.float32)
        interleave(arrays, features)
        codes: npt.NDArray[np.int32] | None = None
        if self.categories:
            codes = np.empty((rows, len(self.categories)), dtype=np.int32)
            for index, category in enumerate(self.categories):
                column = _column(batch, category.name)
                codes[:, index] = category_codes(column, category)
                missing[category.name] = int(np.count_nonzero(missing_mask(column)))
                unknown = rows - int(np.count_nonzero(codes[:, index]))
                unseen[category.name] = unknown - missing[category.name]
        tensors: dict[str, Tensors] = {}
        absent: npt.NDArray[np.bool_] | None = None
        for one in self.tensors:
            found = tensors[one.name] = read_tensors(_column(batch, one.name), one)
            missing[one.name], infinite[one.name] = found.num_missing, found.num_infinite
            if found.absent is not None:
                absent = found.absent if absent is None else absent | found.absent
        label = label_values(_column(batch, self.label.name), self.label) if with_label else None
        return Encoded(features, codes, label, missing, infinite, unseen, tensors, absent)


def category_codes(array: pa.Array, category: Category) -> npt.NDArray[np.int32]:
    """Codes int32 [n] of a categorical column.

    Raises:
        DataError: a column of another type, of which it is not plain what its values are.
    """
    array = plain(array)
    if category.kind == "text":
        values = words_of(array, category.name, category.values)
    else:
        values = whole_of(array, category.name)
    known = pa.array(category.values, type=values.type)
    found = pc.fill_null(pc.index_in(values, value_set=known, skip_nulls=True), -1)
    codes: npt.NDArray[np.int32] = found.to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return codes


def category_values(array: pa.Array, name: str, kind: str) -> pa.Array:
    """A categorical column as text or int64; NaN becomes null.

    Raises:
        DataError: a category of whole numbers holds something else.
    """
    array = plain(array)
    return text_or_whole(array, is_text=True) if kind == "text" else whole_of(array, name)


def label_values(array: pa.Array, label: Label) -> npt.NDArray[Any]:
    """The label [n]: float32 for binary and regression, int64 for multiclass.

    Raises:
        DataError: a label that is missing, or of no known class.
    """
    if label.kind == "regression":
        return float_values(array, label.name, label.offset)
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
    array = plain(array)
    type_ = array.type
    if pa.types.is_boolean(type_) or pa.types.is_string(type_) or pa.types.is_null(type_):
        return array
    if pa.types.is_large_string(type_):
        return array.cast(pa.string())
    return array.cast(pa.int64() if pa.types.is_integer(type_) else pa.float64())


def missing_mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    """True [n] where a value is null or NaN."""
    mask: npt.NDArray[np.bool_] = pc.is_null(plain(array), nan_is_null=True).to_numpy(
        zero_copy_only=False
    )
    return mask


def _shown(classes: tuple[Value, ...]) -> str:
    return ", ".join(str(c) for c in classes[:10]) + (", ..." if len(classes) > 10 else "")


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise DataError(
            f"The source lacks column {name}, which the model needs."
            f"{meant(name, batch.schema.names)}"
        )
    return batch.column(index)
