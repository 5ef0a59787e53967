"""A field: one named tensor of a batch, with what it is for, its type and how it becomes numbers.

A table's numbers are one field, ``features``, and its categories another; so are the label, the
weight and the row's number. A column whose every value is a tensor of one shape (Arrow's
``fixed_shape_tensor``, or lists of a fixed size) is a field of its own name, and so is a column of
lists of any length: a sequence, whose steps are such tensors or numbers. A batch has a sequence
padded with zeros to its longest, and the number of steps beside it, as ``<name>_length``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ddlflow.errors import DataError

Role = Literal["input", "target", "weight", "row"]
Encoding = Literal["numbers", "codes", "class", "tensor", "sequence"]
Transform = Literal["none", "by element", "as a whole"]

LENGTH = "_length"  # the field of a sequence's numbers of steps has its name with this behind it
TABLE_FIELDS = ("features", "categories", "label", "weight", "row")  # those of a table


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a batch.

    Attributes:
        name: in a batch, and for a tensor of the source its column.
        role: what it is for.
        dtype: as the shards hold it, in numpy's words.
        shape: of one sample; of a sequence, of one step.
        encoding: how a column becomes this. A sequence's shards hold a run (first, count) for each
            sample, into a table of values beside them.
        transform: how an input is standardised on its way to the model, by the statistics of the
            rows trained on: each element by its own mean and deviation, or all by one.
    """

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding
    transform: Transform = "none"

    @property
    def is_sequence(self) -> bool:
        """Whether samples have any number of steps."""
        return self.encoding == "sequence"

    @property
    def is_whole(self) -> bool:
        """Whether the values are integers."""
        return np.dtype(self.dtype).kind in "iu"

    @property
    def size(self) -> int:
        """Numbers of one sample; of a sequence, of one step."""
        return prod(self.shape)

    @property
    def num_statistics(self) -> int:
        """How many means it is standardised by."""
        return self.size if self.transform == "by element" else 1

    @property
    def value_bytes(self) -> int:
        """Bytes of one sample as the shards hold it; of a sequence, of one step."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def batch_shape(self) -> tuple[int | None, ...]:
        """Of one sample in a batch; None: as long as the batch's longest sequence."""
        return (None, *self.shape) if self.is_sequence else self.shape

    @property
    def shown(self) -> str:
        """In a message: ``image (uint8 [28, 28])``, ``sequence (float32 [steps, 12])``."""
        axes = ", ".join(["steps"] * self.is_sequence + [str(size) for size in self.shape])
        return f"{self.name} ({self.dtype} [{axes}])"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Field":
        """The inverse of ``dataclasses.asdict``."""
        return cls(**{**value, "shape": tuple(value["shape"])})


def tensor_field(name: str, type_: pa.DataType) -> Field | None:
    """The field that a column of this type is; None where its values are no tensors of numbers."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    found = _fixed(type_.value_type if is_list else type_)
    if found is None or (not is_list and not _is_nested(type_)):
        return None
    value_type, shape = found
    dtype = "uint8" if pa.types.is_boolean(value_type) else str(np.dtype(_numpy(value_type)))
    return Field(
        name,
        "input",
        dtype,
        shape,
        encoding="sequence" if is_list else "tensor",
        transform="by element" if len(shape) < 2 else "as a whole",
    )


def input_names(tensors: Iterable[Field]) -> list[str]:
    """The names that tensor fields have in a batch: a sequence has its lengths beside it."""
    return [
        name
        for field in tensors
        for name in ([field.name, field.name + LENGTH] if field.is_sequence else [field.name])
    ]


def check_names(tensors: Iterable[Field]) -> None:
    """Each of a batch's fields has a name of its own.

    Raises:
        DataError: a column of tensors has a name that is taken.
    """
    taken = {*TABLE_FIELDS}
    for field in tensors:
        for name in input_names([field]):
            if name in taken:
                raise DataError(
                    f"Column {field.name} holds tensors, so it is a field of a batch, which has "
                    f"another one named {name}. Rename the column in the source, or list it in "
                    "data.exclude."
                )
            taken.add(name)


def _fixed(type_: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]] | None:
    """The type of the numbers and the shape of a type whose every value has the same shape."""
    if isinstance(type_, pa.FixedShapeTensorType):
        order = type_.permutation or range(len(type_.shape))
        found = _fixed(type_.value_type)
        shape = tuple(type_.shape[axis] for axis in order)
    elif pa.types.is_fixed_size_list(type_):
        found = _fixed(type_.value_type)
        shape = (type_.list_size,)
    else:
        is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
        return (type_, ()) if is_number or pa.types.is_boolean(type_) else None
    if found is None or 0 in shape:
        return None
    return found[0], (*shape, *found[1])


def _is_nested(type_: pa.DataType) -> bool:
    return isinstance(type_, pa.FixedShapeTensorType) or pa.types.is_fixed_size_list(type_)


def _numpy(type_: pa.DataType) -> Any:
    return type_.to_pandas_dtype()
