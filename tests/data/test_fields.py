"""Columns of tensors and sequences: which they are, and their numbers as Arrow has them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ddlflow.data.fields import Field, check_names, input_names, tensor_field
from ddlflow.data.padding import padded
from ddlflow.data.sources import source
from ddlflow.data.sources.frames import batches, table_of
from ddlflow.data.tensors import read_tensors
from ddlflow.errors import DataError

IMAGE = pa.fixed_shape_tensor(pa.uint8(), [2, 3])
TURNED = pa.fixed_shape_tensor(pa.int16(), [2, 3], permutation=[1, 0])
STEPS = pa.list_(pa.list_(pa.float32(), 2))
RANDOM = np.random.default_rng(1)
PICTURES = RANDOM.integers(0, 256, (5, 2, 3), dtype=np.uint8)
SEQUENCES = [RANDOM.standard_normal((n, 2)).astype(np.float32) for n in (3, 0, 1, 4)]


def field_of(type_: pa.DataType, name: str = "c") -> Field:
    found = tensor_field(name, type_)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("type_", "dtype", "shape", "is_sequence", "transform"),
    [
        (IMAGE, "uint8", (2, 3), False, "as a whole"),
        (TURNED, "int16", (3, 2), False, "as a whole"),
        (pa.list_(pa.float64(), 7), "float64", (7,), False, "by element"),
        (pa.list_(pa.list_(pa.int16(), 4), 2), "int16", (2, 4), False, "as a whole"),
        (pa.list_(pa.bool_(), 3), "uint8", (3,), False, "by element"),
        (pa.list_(pa.int32()), "int32", (), True, "by element"),
        (pa.large_list(pa.float32()), "float32", (), True, "by element"),
        (STEPS, "float32", (2,), True, "by element"),
        (pa.list_(IMAGE), "uint8", (2, 3), True, "as a whole"),
    ],
)
def test_what_a_column_of_tensors_is(
    type_: pa.DataType, dtype: str, shape: tuple[int, ...], is_sequence: bool, transform: str
) -> None:
    field = field_of(type_)
    assert (field.dtype, field.shape, field.is_sequence) == (dtype, shape, is_sequence)
    assert field.transform == transform
    assert field.num_statistics == (np.prod(shape) if transform == "by element" else 1)


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.float32(), pa.string(), pa.list_(pa.string()), pa.list_(pa.list_(pa.float32()))),
        *(pa.struct([("a", pa.float32())]), pa.list_(pa.float32(), 0), pa.list_(pa.date32(), 2)),
    ],
)
def test_what_is_no_tensor_of_numbers(type_: pa.DataType) -> None:
    assert tensor_field("c", type_) is None


def test_each_field_has_a_name_of_its_own() -> None:
    check_names([field_of(IMAGE, "image"), field_of(STEPS, "sequence")])
    assert input_names([field_of(STEPS, "s"), field_of(IMAGE, "i")]) == ["s", "s_length", "i"]
    with pytest.raises(DataError, match=r"Column features .* named features\. Rename"):
        check_names([field_of(IMAGE, "features")])
    with pytest.raises(DataError, match=r"Column s_length .* named s_length\. Rename"):
        check_names([field_of(STEPS, "s"), field_of(IMAGE, "s_length")])


def images(values: np.ndarray, nulls: list[int] | None = None) -> pa.Array:
    rows = [None if k in (nulls or []) else v.ravel().tolist() for k, v in enumerate(values)]
    return pa.ExtensionArray.from_storage(IMAGE, pa.array(rows, IMAGE.storage_type))


def test_tensors_are_what_numpy_has() -> None:
    field, array = field_of(IMAGE), images(PICTURES)
    assert np.array_equal(read_tensors(array, field).values, PICTURES)
    assert np.array_equal(read_tensors(array.slice(2, 2), field).values, PICTURES[2:4])
    own = pa.ExtensionArray.from_storage(
        TURNED, pa.array(PICTURES.reshape(5, 6).tolist(), TURNED.storage_type)
    )
    found = read_tensors(own.slice(1), field_of(TURNED)).values
    assert np.array_equal(found, own.slice(1).to_numpy_ndarray())
    nested = pa.array(PICTURES.tolist(), pa.list_(pa.list_(pa.uint8(), 3), 2))
    assert np.array_equal(read_tensors(nested.slice(3), field_of(nested.type)).values, PICTURES[3:])


def test_sequences_are_their_steps_in_turn() -> None:
    array = pa.array([one.tolist() for one in SEQUENCES], STEPS)
    found = read_tensors(array, field_of(STEPS))
    assert found.counts is not None
    assert found.counts.tolist() == [3, 0, 1, 4]
    assert found.starts.tolist() == [0, 3, 3, 4]
    assert np.array_equal(found.values, np.concatenate(SEQUENCES))
    part = read_tensors(array.slice(2), field_of(STEPS))
    assert np.array_equal(part.values, np.concatenate(SEQUENCES[2:]))
    assert part.starts.tolist() == [0, 1]


def test_nulls() -> None:
    found = read_tensors(images(PICTURES, [1, 4]), field_of(IMAGE))
    assert found.absent is not None
    assert found.absent.tolist() == [False, True, False, False, True]
    assert found.num_missing == 2
    # A null among whole numbers leaves the tensor without meaning; among floats it is NaN.
    whole = pa.array([[1, None], [1, 2]], pa.list_(pa.int8(), 2))
    absent = read_tensors(whole, field_of(whole.type)).absent
    assert absent is not None
    assert absent.tolist() == [True, False]
    steps = pa.array([[[1.0, None]], None, [None, [3.0, 4.0]]], STEPS)
    ragged = read_tensors(steps, field_of(STEPS))
    expected = [[1.0, np.nan], [np.nan, np.nan], [3.0, 4.0]]
    assert np.array_equal(ragged.values, np.array(expected, np.float32), equal_nan=True)
    assert ragged.absent is not None
    assert ragged.absent.tolist() == [False, True, False]
    assert ragged.num_missing == 1
    assert read_tensors(steps.slice(0, 1), field_of(STEPS)).num_infinite == 0


@pytest.mark.parametrize("make", ["pandas", "arrow"])
def test_tables_in_memory_give_the_same_tensors(make: str) -> None:
    steps = pa.array([one.tolist() for one in SEQUENCES], STEPS)
    table = pa.table({"image": images(PICTURES[:4]), "s": steps})
    given = table.to_pandas() if make == "pandas" else table
    (batch,) = batches(table_of(given), 100)
    assert np.array_equal(read_tensors(batch.column("image"), field_of(IMAGE)).values, PICTURES[:4])
    found = read_tensors(batch.column("s"), field_of(STEPS))
    assert np.array_equal(found.values, np.concatenate(SEQUENCES))


def test_pandas_arrays_of_two_axes_are_read() -> None:
    frame = pd.DataFrame({"image": [*PICTURES[:4]], "s": SEQUENCES})
    (batch,) = batches(table_of(frame), 100)
    found = read_tensors(batch.column("image"), field_of(IMAGE))
    assert np.array_equal(found.values, PICTURES[:4])
    steps = read_tensors(batch.column("s"), field_of(STEPS))
    assert np.array_equal(steps.values, np.concatenate(SEQUENCES))


@pytest.mark.parametrize(
    ("given", "type_", "words"),
    [
        ([[1.0, 2, 3, 4, 5]], IMAGE, r"lists of 5, where c \(uint8 \[2, 3\]\) is expected"),
        ([[1.0, 2, 3, 4, 5, 300]], IMAGE, "holds 300.0, and the model was trained on uint8"),
        ([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], IMAGE, "trained on uint8"),
        (["x"], IMAGE, "type string, where"),
        ([[[1.0, 2.0], [1.0]]], STEPS, r"lists of 1, where c \(float32 \[steps, 2\]\)"),
        ([[1.0, 2.0]], STEPS, "type double, where"),
    ],
)
def test_other_shapes_and_numbers_are_refused(
    given: list[Any], type_: pa.DataType, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_tensors(pa.array(given), field_of(type_))


def test_runs_are_padded_to_the_longest() -> None:
    values, counts = np.concatenate(SEQUENCES), np.array([3, 0, 1, 4])
    firsts = np.cumsum(counts) - counts
    for rows in ([0, 1, 2, 3], [3, 0], [1], [2, 1, 2]):
        found = padded(values, firsts[rows], counts[rows])
        longest = max(1, counts[rows].max())
        assert found.shape == (len(rows), longest, 2)
        for row, k in enumerate(rows):
            assert np.array_equal(found[row, : counts[k]], SEQUENCES[k])
            assert not found[row, counts[k] :].any()


@pytest.mark.parametrize("most_rows", [3, 7, 1_000])
@pytest.mark.parametrize("most_bytes", [40, 100, 400])
def test_a_piece_has_as_many_tensors_as_have_room(
    monkeypatch: pytest.MonkeyPatch, most_rows: int, most_bytes: int
) -> None:
    monkeypatch.setattr(source, "PIECE_ROWS", most_rows)
    monkeypatch.setattr(source, "PIECE_BYTES", most_bytes)
    random = np.random.default_rng(most_rows + most_bytes)
    for _ in range(20):
        rows = [[1] * int(n) for n in random.choice([0, 0, 1, 3, 9, 40], random.integers(0, 60))]
        cuts = [0, *sorted(random.integers(0, len(rows) + 1, 3).tolist()), len(rows)]
        given = [
            pa.RecordBatch.from_pydict({"s": pa.array(rows[a:b], pa.list_(pa.int32()))})
            for a, b in pairwise(cuts)
        ]
        found = list(source.in_pieces(given))
        assert [one for piece in found for one in piece.column(0).to_pylist()] == rows
        expected: list[int] = []  # one row after the other
        held = 0
        for row in rows:
            if not expected or expected[-1] == most_rows or held + 4 * len(row) > most_bytes:
                expected.append(0)
                held = 0
            expected[-1] += 1
            held += 4 * len(row)
        assert [piece.num_rows for piece in found] == expected
