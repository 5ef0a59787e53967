"""What of a source is taken as it stands: keys, and words that a CSV file takes for missing values.

A CSV file says nothing of types. To a model a column is what it was in training; a key is the very
text. And a word such as NA stands for a missing value, unless the model has learnt it: then it is
Namibia. So such columns are read from the file once more, as text.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.source import Range, Source, read
from ddlflow.infer.model import TrainedModel

Pieces = Iterator[tuple[dict[str, pa.Array], pa.RecordBatch]]


def as_written(source: Source, part: Range, keys: Sequence[str], model: TrainedModel) -> Pieces:
    """The keys of each piece of a range, and a batch with the model's features.

    Args:
        source: opened by the model.
        part: the range.
        keys: columns that are copied: of a CSV file as text, else in their own type.
        model: which features are read.
    """
    is_csv = source.dialect.format == "csv"
    words = _learnt_words(source, model) if is_csv else {}
    as_text = [key for key in keys if is_csv and key in source.names]
    typed = [key for key in keys if key not in as_text]
    pieces = read(source, part, list(dict.fromkeys([*typed, *model.features])))
    if not as_text and not words:
        for piece in pieces:
            yield {key: piece.column(key) for key in keys}, piece
        return
    wanted = list(dict.fromkeys([*as_text, *words]))
    texts = read(source.verbatim(wanted), part, wanted)
    for piece, text in zip(pieces, texts, strict=True):
        of_key = {key: (text if key in as_text else piece).column(key) for key in keys}
        yield of_key, _with_words(piece, text, words)


def _learnt_words(source: Source, model: TrainedModel) -> dict[str, pa.Array]:
    """By category that has learnt a word for missing values, those words that stay missing."""
    found = {}
    missing = source.dialect.missing
    for category in model.columns.categories:
        is_own = category.kind == "text" and category.name in source.names
        if is_own and not {*category.values}.isdisjoint(missing):
            left = [word for word in missing if word not in category.values]
            found[category.name] = pa.array(left, pa.string())
    return found


def _with_words(
    piece: pa.RecordBatch, text: pa.RecordBatch, words: dict[str, pa.Array]
) -> pa.RecordBatch:
    """A piece whose columns of learnt words are as they stand in the file."""
    for name, missing in words.items():
        column = text.column(name)
        column = pc.if_else(pc.is_in(column, value_set=missing), None, column)
        piece = piece.set_column(piece.schema.get_field_index(name), name, column)
    return piece
