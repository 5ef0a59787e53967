"""Which rows are kept: what the condition, and missing and infinite values, do to a row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.columns import missing_mask
from ddlflow.data.fields import Field
from ddlflow.data.numbers import float_values
from ddlflow.data.roles import Roles
from ddlflow.data.tensors import read_tensors
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

REASONS = ("where", "label", "missing", "infinite")


@dataclass(frozen=True, slots=True)
class RowsKept:
    """The rows of a piece that are kept.

    Attributes:
        mask: bool [n], or None where every row is kept.
        dropped: rows left out, by reason (the first that applies).
        columns: rows that a column leaves out, by reason: a row counts for each such column.
        refused: values that end the stage, by reason and column.
    """

    mask: npt.NDArray[np.bool_] | None
    dropped: dict[str, int] = field(default_factory=dict)
    columns: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a source has and the data set has not.

    Attributes:
        rows: that are left out, by reason (the first that applies).
        columns: by reason and column; a row counts for each column that leaves it out.
        missing: by categorical feature, the rows that are kept without a value.
    """

    rows: dict[str, int]
    columns: dict[str, dict[str, int]]
    missing: dict[str, int]


def needs_features(spec: Data) -> bool:
    """Whether the features decide which rows are kept."""
    return spec.missing != "impute" or spec.infinite != "impute"


def rows_to_keep(batch: pa.RecordBatch, roles: Roles, spec: Data, labels: str) -> RowsKept:
    """Applies ``data.where``, ``label_missing``, ``missing`` and ``infinite`` to a piece.

    Rows that ``where`` leaves out may hold anything.

    Args:
        batch: the condition, the label, and the features where ``needs_features``; tensors also
            where some may be null.
        roles: what the columns are for.
        spec: the policies.
        labels: a number that stands for a class is checked as it is, a target as float32.
    """
    bad = {reason: np.zeros(batch.num_rows, dtype=bool) for reason in REASONS}
    columns: dict[str, dict[str, int]] = {reason: {} for reason in REASONS}
    refused: dict[str, dict[str, int]] = {reason: {} for reason in (*REASONS, "tensor")}
    if roles.where is not None:
        holds = pc.fill_null(batch.column(roles.where), False)
        bad["where"] = ~holds.to_numpy(zero_copy_only=False)

    def judge(reason: str, name: str, mask: npt.NDArray[np.bool_], policy: str) -> None:
        if roles.where is not None:
            mask = mask & ~bad["where"]
        count = int(np.count_nonzero(mask))
        if count and policy == "drop":
            bad[reason] |= mask
            columns[reason][name] = count
        elif count and policy == "refuse":
            refused[reason][name] = count

    label = batch.column(roles.label)
    useless = missing_mask(label)
    if labels == "regression":
        useless = ~np.isfinite(float_values(label, roles.label))
    elif pa.types.is_floating(label.type):
        useless = useless | np.isinf(label.to_numpy(zero_copy_only=False))
    judge("label", roles.label, useless, spec.label_missing)
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
    for of_column in roles.tensors:
        if of_column.name in batch.schema.names:
            _judge_tensors(batch, of_column, spec, judge)
    out = np.zeros(batch.num_rows, dtype=bool)
    dropped = {}
    for reason in REASONS:
        dropped[reason] = int(np.count_nonzero(bad[reason] & ~out))
        out |= bad[reason]
    refused["weight"] = _bad_weights(batch, roles, out)
    return RowsKept(~out if out.any() else None, dropped, columns, refused)


def _judge_tensors(
    batch: pa.RecordBatch,
    of_column: Field,
    spec: Data,
    judge: Callable[[str, str, npt.NDArray[np.bool_], str], None],
) -> None:
    """A tensor or sequence that is null is dropped or refused: nothing could stand for all of it.

    Numbers in it that are missing or infinite are judged as those of any feature.
    """
    name = of_column.name
    found = read_tensors(batch.column(name), of_column)
    absent = found.absent if found.absent is not None else np.zeros(batch.num_rows, dtype=bool)
    if spec.missing == "drop":
        judge("missing", name, absent, "drop")
    else:
        judge("tensor", name, absent, "refuse")
    if of_column.is_whole or not needs_features(spec):
        return
    with np.errstate(over="ignore"):
        numbers = found.values.astype(np.float32, copy=False)
    judge("missing", name, found.by_sample(np.isnan(numbers)) & ~absent, spec.missing)
    judge("infinite", name, found.by_sample(np.isinf(numbers)), spec.infinite)


def _bad_weights(batch: pa.RecordBatch, roles: Roles, out: npt.NDArray[np.bool_]) -> dict[str, int]:
    """By column, the rows that are kept and have no weight, or one below 0 or without end."""
    if roles.weight is None:
        return {}
    values = float_values(batch.column(roles.weight), roles.weight)
    count = int(np.count_nonzero(~(np.isfinite(values) & (values >= 0)) & ~out))
    return {roles.weight: count} if count else {}


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
                "Set data.label_missing: drop to leave these rows out, or correct the source."
            )
        elif reason == "tensor":
            found.append(
                f"Tensors or sequences are null in some rows: {shown}; no mean can stand for one. "
                "Set data.missing: drop to leave these rows out, or correct the source."
            )
        elif reason == "weight":
            found.append(
                f"Weights are missing, negative or infinite in some rows: {shown}. Correct "
                "data.weight or the source, or leave these rows out by data.where."
            )
        else:
            found.append(
                f"Features hold {reason} values: {shown}; data.{reason} is refuse. "
                f"Set data.{reason} to impute or drop, or correct the source."
            )
    if found:
        raise DataError(" ".join(found))
