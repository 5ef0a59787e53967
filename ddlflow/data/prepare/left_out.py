"""What a user should read of the rows, in words: absent, of no use, dropped, replaced."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ddlflow.data.fields import LENGTH
from ddlflow.data.numbers import EXACT
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.statistics import Statistics
from ddlflow.data.shards.tensor_statistics import TensorStatistics
from ddlflow.errors import DataError

_SHOWN = 10  # columns that a sentence names
_WHY = {
    "where": "data.where does not hold",
    "label": "the label is missing or infinite",
    "missing": "a feature is missing",
    "infinite": "a feature is infinite",
}


def check_present(
    numeric: Sequence[str], train: Statistics, of_tensors: Mapping[str, TensorStatistics]
) -> None:
    """Each column has a number in the training rows.

    Args:
        numeric: the names of the numeric features.
        train: their statistics.
        of_tensors: those of each tensor and sequence.

    Raises:
        DataError: columns that have none.
    """
    counts = zip(numeric, train.count.tolist(), strict=True)
    nowhere = [name for name, count in counts if not count]
    without = {name: one for name, one in of_tensors.items() if not one.elements.count.any()}
    empty = [name for name, one in without.items() if one.empty and not one.longest]
    nowhere += [name for name in without if name not in empty]
    said = [f"Missing in every training row: {', '.join(nowhere)}."] if nowhere else []
    said += [f"Empty in every training row: {', '.join(empty)}."] if empty else []
    if said:
        raise DataError(f"{' '.join(said)} List it in data.exclude.")


def warnings_of(
    manifest: Manifest, constant: list[str], rare: list[str], train: Statistics
) -> list[str]:
    """What a user should read, though the data can be used."""
    found = []
    blurred = _blurred(manifest, constant, train)
    alike = [name for name in constant if name not in blurred]
    if alike:
        found.append(
            f"Constant in every training row, so of no use: {', '.join(alike)}. "
            "List it in data.exclude."
        )
    if blurred:
        found.append(
            f"Constant as float64 in every training row: {', '.join(blurred)}. Whole numbers from "
            "2^53 on may differ and be one number in float64. data.text, and below 2^63 "
            "data.categorical, takes those of a text file as they are; else list it in "
            "data.exclude."
        )
    if rare:
        found.append(
            f"No value is in data.rare_below ({manifest.settings['rare_below']}) rows or more, so "
            f"all are one category and of no use: {', '.join(rare)}. "
            "Lower data.rare_below, or list it in data.exclude."
        )
    classes = manifest.label.classes
    absent = [str(classes[i]) for i in np.flatnonzero(train.class_counts == 0)]
    if absent:
        found.append(f"No training row is of class {', '.join(absent)}: it cannot be learnt.")
    for split_name in ("validation", "test"):
        wanted = manifest.settings["split"]["column"] is None and (
            manifest.settings["split"][split_name] > 0
        )
        if wanted and manifest.rows(split_name) == 0:
            found.append(f"The {split_name} split has no row: the source is too small for it.")
    for name, one in manifest.tensor_statistics().items():
        if one.empty:
            found.append(
                f"{name} has no step in {one.empty:,} training rows: a model gets these as zeros, "
                f"with 0 as their {name}{LENGTH}. Leave them out by data.where if that is not so."
            )
    found += left_out_notes(manifest)
    return found


def _blurred(manifest: Manifest, constant: list[str], train: Statistics) -> list[str]:
    """The constant columns whose values may differ in the source: too large for float64."""
    columns = manifest.columns
    offsets, types = dict(columns.offsets), columns.known
    values = dict(zip(columns.numeric, train.minimum.tolist(), strict=True))
    return [
        name
        for name in constant
        if abs(values.get(name, 0) + offsets.get(name, 0)) >= EXACT
        and not (name in types and pa.types.is_integer(types[name]))
    ]


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
