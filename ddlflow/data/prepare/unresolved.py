"""Columns whose values the model can hardly tell apart, whatever they are shifted by."""

from collections.abc import Iterable

import numpy as np

from ddlflow.data.offsets import Number, centre_of, less
from ddlflow.data.shards.manifest import Manifest

# Values whose spread is a smaller part of the deviation than this look alike to a net, which sees
# them standardised.
ALIKE = 2.0**-10


def unresolved(manifest: Manifest, points: dict[str, list[Number]]) -> list[str]:
    """Columns whose values look alike to the model though they are not."""
    columns, train = manifest.columns, manifest.statistics("train")
    deviations = dict(zip(columns.numeric, np.sqrt(train.variance), strict=True))
    offsets = dict(columns.offsets)
    if manifest.label.kind == "regression":
        known = manifest.label_statistics("train")
        deviations[manifest.label.name] = np.sqrt(known.variance[0])
        offsets[manifest.label.name] = manifest.label.offset
    found = [
        _sentence(name, values, offsets.get(name, 0), float(deviations[name]))
        for name, values in points.items()
        if name not in manifest.constant
    ]
    return [sentence for sentence in found if sentence is not None]


def _sentence(name: str, points: Iterable[Number], offset: Number, deviation: float) -> str | None:
    """A sentence on a column whose values look alike even so; None where they do not.

    Args:
        name: of the column.
        points: values of it.
        offset: that it is shifted by.
        deviation: of the training rows.
    """
    distinct = sorted(set(points))
    if len(distinct) < 2:
        return None
    centre, spread = centre_of(distinct)
    with np.errstate(over="ignore"):
        distinguished = len({float(np.float32(less(value, offset))) for value in distinct})
    # Of a fraction the last bits are no difference that anyone meant.
    pairs = zip(distinct[1:], distinct, strict=False)
    meant = 1 + sum(isinstance(b, int) or b - a > abs(b) * 2.0**-44 for b, a in pairs)
    is_far = offset != 0 and spread < deviation * ALIKE
    if distinguished >= meant * 0.75 and not is_far:
        return None
    return (
        f"Column {name}: many of its values are about {spread:.3g} apart, around {centre:.10g}, "
        f"and others lie so far from them (its deviation is {deviation:.3g}) that the model can "
        "hardly tell the near ones apart. Leave empty what stands for a missing value, or make two "
        "columns of it."
    )
