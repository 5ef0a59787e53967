"""What a source holds that the model's training rows did not: counted by column, and said."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ddlflow.data.columns import Encoded

MOST = 0.5  # from this share of a column's values on the predictions are hardly of that column
Counts = dict[str, dict[str, int]]  # column -> missing, unseen or infinite -> how many values


def counts_of(encoded: Encoded) -> Counts:
    """The counts of a batch, of every column of the model."""
    found: Counts = {name: {"missing": number} for name, number in encoded.missing.items()}
    for name, number in encoded.infinite.items():
        found[name]["infinite"] = number
    for name, number in encoded.unseen.items():
        found[name]["unseen"] = number
    return found


def total(parts: Iterable[Counts]) -> Counts:
    """The counts of several batches together."""
    found: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            found.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in found.items()}


def notes(counts: Counts, rows: int, usual: Mapping[str, float]) -> list[str]:
    """A sentence for each column most of whose values the model knows nothing of.

    Args:
        counts: over all rows.
        rows: how many there are.
        usual: by column, the share of such values in training.
    """
    found = []
    for name, of_column in counts.items():
        share = sum(of_column.values()) / max(rows, 1)
        before = usual.get(name, 0.0)
        if share <= MOST or share <= 2 * before:
            continue
        kinds = [f"{number:,} {kind}" for kind, number in of_column.items() if number]
        found.append(
            f"Column {name}: of {rows:,} values {' and '.join(kinds)}, where in training "
            f"{before:.1%} were. The predictions hardly use this column: is it spelt, and in the "
            "units, as in training?"
        )
    return found
