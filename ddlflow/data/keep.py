"""Which rows are kept: what missing and infinite values do to a row."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.columns import float_values, missing_mask
from ddlflow.data.roles import Roles
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

REASONS = ("label", "missing", "infinite")


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of a piece that are kept.

    Attributes:
        mask: bool [n], or None where every row is kept.
        dropped: rows left out, by reason (the first that applies).
        refused: values that end the stage, by reason and column.
    """

    mask: npt.NDArray[np.bool_] | None
    dropped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)


def needs_features(spec: Data) -> bool:
    """Whether the features decide which rows are kept."""
    return spec.missing != "impute" or spec.infinite != "impute"


def keep(batch: pa.RecordBatch, roles: Roles, spec: Data, labels: str) -> Kept:
    """Applies ``data.missing`` and ``data.infinite`` to a piece.

    Args:
        batch: the label, and the features where ``needs_features``.
        roles: what the columns are for.
        spec: the policies.
        labels: a number that stands for a class is checked as it is, a target as float32.
    """
    bad = {reason: np.zeros(batch.num_rows, dtype=bool) for reason in REASONS}
    refused: dict[str, dict[str, int]] = {reason: {} for reason in REASONS}

    def judge(reason: str, name: str, mask: npt.NDArray[np.bool_], policy: str) -> None:
        count = int(np.count_nonzero(mask))
        if count and policy == "drop":
            bad[reason] |= mask
        elif count and policy == "refuse":
            refused[reason][name] = refused[reason].get(name, 0) + count

    label = batch.column(roles.label)
    useless = missing_mask(label)
    if labels == "regression":
        useless = ~np.isfinite(float_values(label, roles.label))
    elif pa.types.is_floating(label.type):
        useless = useless | np.isinf(label.to_numpy(zero_copy_only=False))
    judge("label", roles.label, useless, "drop" if spec.missing == "drop" else "refuse")
    if needs_features(spec):
        for name in roles.numeric:
            values = float_values(batch.column(name), name)
            if np.isfinite(values).all():
                continue
            nan = np.isnan(values)
            judge("missing", name, nan, spec.missing)
            judge("infinite", name, np.isinf(values), spec.infinite)
        for name in roles.categorical:
            judge("missing", name, missing_mask(batch.column(name)), spec.missing)
    out = np.zeros(batch.num_rows, dtype=bool)
    dropped = {}
    for reason in REASONS:
        dropped[reason] = int(np.count_nonzero(bad[reason] & ~out))
        out |= bad[reason]
    return Kept(~out if out.any() else None, dropped, refused)


def check_refused(refused: dict[str, dict[str, int]]) -> None:
    """Ends the stage if any value was refused.

    Raises:
        DataError: names columns and counts, for every reason that there is.
    """
    found = []
    for reason, columns in refused.items():
        if not columns:
            continue
        shown = ", ".join(f"{name} ({count})" for name, count in list(columns.items())[:10])
        shown += ", ..." if len(columns) > 10 else ""
        if reason == "label":
            found.append(
                f"The label is missing or infinite in some rows: {shown}. "
                "Set data.missing: drop to leave these rows out, or correct the source."
            )
        else:
            found.append(
                f"Features hold {reason} values: {shown}; data.{reason} is refuse. "
                f"Set data.{reason} to impute or drop, or correct the source."
            )
    if found:
        raise DataError(" ".join(found))
