"""What was given and is not learnt from as it stands, in words: rows dropped, values replaced."""

from collections.abc import Mapping

from ddlflow.data.shards.manifest import Manifest

_SHOWN = 10  # columns that a sentence names
_WHY = {
    "where": "data.where does not hold",
    "label": "the label is missing or infinite",
    "missing": "a feature is missing",
    "infinite": "a feature is infinite",
}


def left_out_notes(manifest: Manifest) -> list[str]:
    """A sentence on the rows that were dropped and one on the values that were replaced."""
    found = []
    if sum(manifest.dropped.values()):
        reasons = [
            f"{rows:,} as {_WHY[reason]}{_named(manifest.dropped_columns.get(reason, {}))}"
            for reason, rows in manifest.dropped.items()
            if rows
        ]
        found.append(f"Rows were dropped: {'; '.join(reasons)}.")
    categories = {category.name for category in manifest.categories}
    numbers = {n: rows for n, rows in manifest.replaced.items() if n not in categories}
    texts = {n: rows for n, rows in manifest.replaced.items() if n in categories}
    parts = []
    if numbers:
        parts.append(f"by the training rows' mean{_named(numbers)}")
    if texts:
        parts.append(f"by the bucket of unseen values{_named(texts)}")
    if parts:
        found.append(f"Missing or infinite values were replaced {'; '.join(parts)}.")
    return found


def _named(columns: Mapping[str, int]) -> str:
    """`` (late 12, height 3)``, the largest first."""
    most = sorted(columns.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in most[:_SHOWN])
    return f" ({shown}{', ...' if len(most) > _SHOWN else ''})" if most else ""
