"""What of a source is taken as it stands: keys, and words that a CSV file takes for missing values.

A CSV file says nothing of types: its columns are ``untyped``. To a model a column is what it was in
training; a key is the very text. And a word such as NA stands for a missing value, unless the model
has learnt it: then it is Namibia. So where the text and what the model reads differ, the file is
read once more, as text.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.derive import needed
from ddlflow.data.sources.derive_rows import evaluate
from ddlflow.data.sources.source import Range, Source, read
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
    words = _learnt_words(source, model)
    as_text = [key for key in keys if key in source.untyped]
    alone = [key for key in as_text if key not in model.inputs]  # the model does not read these
    wanted = list(dict.fromkeys([*as_text, *words]))
    texts = enumerate(read(source.verbatim(wanted), part, wanted)) if wanted else iter(())
    others = [key for key in keys if key in alone or key not in as_text]
    columns = list(dict.fromkeys([*others, *model.features]))
    derived, own = needed(columns, source.derived) if words else ([], columns)
    for number, piece in enumerate(read(source.as_text(alone), part, own)):
        has_gaps = any(piece.column(key).null_count for key in alone)
        if not words and len(alone) == len(as_text) and not has_gaps:
            yield {key: piece.column(key) for key in keys}, piece
            continue
        # Where a key is a feature too, or a word that stands for a missing value.
        text = next(text for at, text in texts if at == number)
        piece = _with_words(piece, text, words)  # noqa: PLW2901 - and what is derived from it
        piece = evaluate(piece, columns, derived) if derived else piece  # noqa: PLW2901
        yield {key: (text if key in as_text else piece).column(key) for key in keys}, piece


def _learnt_words(source: Source, model: TrainedModel) -> dict[str, pa.Array]:
    """By category that has learnt a word for missing values, those words that stay missing."""
    found = {}
    missing = source.missing_words
    for category in model.columns.categories:
        is_own = category.kind == "text" and category.name in source.untyped
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
