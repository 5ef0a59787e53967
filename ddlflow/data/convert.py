"""A column of another type than the model was trained on: converted where one thing alone is meant.

Numbers are numbers whatever their width; a text that spells a number is that number. Whole numbers
stand for words only where the words are such numbers, spelt in the one usual way: 1234 is never
taken for '01234'. All else is refused in a sentence that names both types.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError

_WHOLE = r"^\s*[+-]?\d+(\.0*)?\s*$"  # with gaps pandas writes whole numbers as 2020.0
_USUAL = r"^(0|-?[1-9]\d*)$"  # the only spelling of a whole number that nobody would correct
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def numbers_of(array: pa.Array, name: str) -> pa.Array:
    """A text column as float64; any other stays as it is.

    Raises:
        DataError: a text that is no number.
    """
    if kind_of(array.type) != "text":
        return array
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        if pc.all(pc.is_in(pc.utf8_lower(text), value_set=pa.array(["true", "false"]))).as_py():
            return text.cast(pa.bool_())
        known = pc.fill_null(pc.match_substring_regex(text, _NUMBER), True)
        shown = array.filter(pc.invert(known)).slice(0, 1).to_pylist() or ["such a text"]
        raise DataError(
            f"Column {name} holds {shown[0]!r} (type {array.type}), where numbers are expected. "
            "Give the numbers, or leave the value out if it is missing."
        ) from None


def text_or_whole(array: pa.Array, *, is_text: bool) -> pa.Array:
    """A column as text or int64; NaN becomes null.

    Raises:
        pyarrow.ArrowInvalid: a number that is not whole, or a text.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text:
        return array if pa.types.is_string(array.type) else array.cast(pa.string())
    if pa.types.is_floating(array.type):  # pandas turns whole numbers with gaps into floats
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array.cast(pa.int64())


def whole_of(array: pa.Array, name: str) -> pa.Array:
    """A column as int64; NaN becomes null, and a text that spells a whole number is that number.

    Raises:
        DataError: something else than whole numbers.
    """
    try:
        if kind_of(array.type) not in ("number", "text"):
            raise pa.ArrowInvalid(f"it is of type {array.type}")
        return text_or_whole(_spelt(array), is_text=False)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Category {name} holds something else than whole numbers: {error}. "
            "Round it, list it in data.text, or take it out of data.categorical."
        ) from error


def _spelt(array: pa.Array) -> pa.Array:
    """Texts such as 2020, 2020.0 and 007 without what the number does not need."""
    if kind_of(array.type) != "text":
        return array
    text = array.cast(pa.string())
    is_whole = pc.fill_null(pc.match_substring_regex(text, _WHOLE), True)
    if pc.all(is_whole).as_py() is False:
        bad = text.filter(pc.invert(is_whole))[0].as_py()
        raise pa.ArrowInvalid(f"{bad!r:.80}")
    return pc.replace_substring_regex(text, r"^\s*\+?|(\.0*)?\s*$", "")


def words_of(array: pa.Array, name: str, words: Sequence[Any]) -> pa.Array:
    """A column as the text that a vocabulary is of.

    Raises:
        DataError: it is no text, and what its values are in the vocabulary is not plain.
    """
    kind = kind_of(array.type)
    if kind == "text" or pa.types.is_null(array.type):
        return array if pa.types.is_string(array.type) else array.cast(pa.string())
    if pa.types.is_floating(array.type) and pc.all(pc.is_nan(array)).as_py() is not False:
        return pa.nulls(len(array), pa.string())  # pandas' type of a column without any value
    if kind == "number" and not pa.types.is_boolean(array.type) and _are_usual(words):
        try:
            if pa.types.is_integer(array.type):  # also those of 64 bits without a sign
                return array.cast(pa.string())
            return whole_of(array, name).cast(pa.string())
        except DataError:
            pass  # 1.5 may be 1.50, 15e-1: it has no usual spelling
    shown = ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")
    raise DataError(
        f"Column {name} is of type {array.type}, where the training data had text ({shown}): which "
        "value means which text is not plain. Give the column as text, spelt as in training."
    )


def _are_usual(words: Sequence[Any]) -> bool:
    """Whether whole numbers are among the words, each number in its usual spelling."""
    text = pa.array(words, pa.string())
    numbers = text.filter(pc.match_substring_regex(text, _NUMBER))
    usual = pc.match_substring_regex(numbers, _USUAL)
    return len(numbers) > 0 and bool(pc.all(usual).as_py())
