"""Which column is for what, by names and types alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from ddlflow.data.fields import Field, check_names, tensor_field
from ddlflow.data.sources.derive import WHERE, Derived, made_of_features, sources_of
from ddlflow.data.sources.derive_dates import parts
from ddlflow.data.sources.schema import is_date, is_name, is_time, kind_of, meant
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Cv, Data

Labels = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True, slots=True)
class Roles:
    """What each column is for, by names and types alone.

    Attributes:
        numeric: features that are numbers, in order.
        categorical: features that are categories, in order.
        label: the label column.
        split: the column that names each row's split, or None.
        by: the column that folds are made by, or None.
        where: the column that says which rows are learnt from, or None.
        left_out: columns that features: all leaves out, as they tell the label.
        telling: listed features that tell the label.
        weight: the column of the rows' weights, or None.
        tensors: features that are tensors or sequences, in order.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    label: str
    split: str | None
    by: str | None = None
    where: str | None = None
    left_out: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()
    weight: str | None = None
    tensors: tuple[Field, ...] = ()

    def keys(self, *, is_test: bool) -> list[str]:
        """All but numbers and tensors, each once; a test source has no split and no folds."""
        extra = [self.where, self.weight, *([] if is_test else [self.split, self.by])]
        named = [name for name in extra if name is not None]
        return list(dict.fromkeys([self.label, *self.categorical, *named]))

    @property
    def needed(self) -> list[str]:
        """What a test source has to have."""
        return [self.label, *self.features, *([self.weight] if self.weight else [])]

    @property
    def features(self) -> list[str]:
        return [*self.numeric, *self.categorical, *self.tensor_names]

    @property
    def tensor_names(self) -> list[str]:
        return [field.name for field in self.tensors]

    @property
    def notes(self) -> list[str]:
        """What a user should know of the columns: full sentences."""
        found = []
        if self.left_out:
            found.append(
                f"No features, as label {self.label} is computed from the same columns: "
                f"{_listed(self.left_out)}. List them in data.features to learn from them."
            )
        if self.telling:
            found.append(
                f"Features from the same columns as label {self.label}: {_listed(self.telling)}. "
                "Unless they are known when the model is applied, take them out of data.features."
            )
        return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def choose(
    schema: dict[str, pa.DataType],
    spec: Data,
    labels: Labels,
    cv: Cv | None = None,
    index: Collection[str] = (),
    *,
    derived: Sequence[Derived] = (),
) -> Roles:
    """Decides what each column is for.

    Args:
        schema: column name -> type, in order, derived ones among them.
        spec: the pipeline's data section.
        labels: how the label is read.
        cv: the pipeline's folds, if it has any.
        index: columns that were the index of a frame: features only where they are named.
        derived: the columns that are computed.

    Raises:
        DataError: an unknown column, a label among the features, a type that is no feature.
    """
    split = spec.split.column
    by = _by(schema, spec, cv)
    named = {"label": [spec.label], "split.column": [split] if split else []}
    named["weight"] = [spec.weight] if spec.weight else []
    named |= {"exclude": spec.exclude, "categorical": spec.categorical, "text": spec.text}
    named["features"] = [] if spec.features == "all" else list(spec.features)
    for key, names in named.items():
        for name in names:
            if name not in schema:
                raise DataError(
                    f"data.{key} names column {name}, which the source lacks.{meant(name, schema)}"
                )
    apart = _apart(schema, spec, derived)
    source = sources_of(spec.label, derived)
    tell = {
        name
        for name in schema
        if name not in (spec.label, WHERE) and source & sources_of(name, derived)
    }
    left_out: list[str] = []
    if spec.features == "all":
        no_feature = {spec.label, *spec.exclude, split, by, spec.weight, WHERE, *apart}
        no_feature |= set(index) - set(spec.categorical)
        features = [name for name in schema if name not in {*no_feature, *tell}]
        left_out = [n for n in schema if n in tell - no_feature - {*made_of_features(derived)}]
    else:
        named_ones = [apart.get(name, [name]) for name in spec.features]
        named_ones.append(made_of_features(derived))
        features = list(dict.fromkeys(name for names in named_ones for name in names))
    if spec.label in features:
        raise DataError(f"data.features lists the label {spec.label}. Take it out of the list.")
    _check_weight(schema, spec, features)
    if not features:
        only = f" (The table's index, {', '.join(index)}, is none unless named.)" if index else ""
        raise DataError(
            f"No feature is left beside the label. Correct data.features or data.exclude.{only}"
        )
    for name in spec.categorical:
        if name not in features:
            raise DataError(f"data.categorical names {name}, which is no feature. Take it out.")
    kinds = {name: kind_of(schema[name]) for name in [*features, spec.label]}
    tensors = _tensors(schema, spec, features)
    label_kind = kinds[spec.label]
    if label_kind not in ("number", "text") or (labels == "regression" and label_kind == "text"):
        allowed = "a number" if labels == "regression" else "a number or a text"
        raise DataError(
            f"Label {spec.label} is of type {schema[spec.label]}; for objective {labels} it has to "
            f"be {allowed}. Correct data.label or train.objective."
        )
    categorical = {n for n in features if kinds[n] == "text" or n in spec.categorical}
    return Roles(
        numeric=tuple(name for name in features if name not in {*categorical, *tensors}),
        categorical=tuple(name for name in features if name in categorical),
        label=spec.label,
        split=split,
        by=by,
        where=WHERE if spec.where is not None else None,
        left_out=tuple(left_out),
        telling=tuple(name for name in features if name in tell),
        weight=spec.weight,
        tensors=tuple(tensors.values()),
    )


def _tensors(
    schema: dict[str, pa.DataType], spec: Data, features: Sequence[str]
) -> dict[str, Field]:
    """The features that are tensors or sequences.

    Raises:
        DataError: a feature that is no such column, no number and no text; one that is and is
            listed as a category, or whose name is another field's.
    """
    found = {name: tensor_field(name, schema[name]) for name in features}
    tensors = {name: field for name, field in found.items() if field is not None}
    check_names(tensors.values())
    for name in features:
        if name in tensors and name in spec.categorical:
            raise DataError(
                f"data.categorical names {tensors[name].shown}, which is no single value a row. "
                "Take it out."
            )
        if name not in tensors and kind_of(schema[name]) not in ("number", "text"):
            also = "Set data.dates to parts, turn" if is_date(schema[name]) else "Turn"
            if pa.types.is_struct(schema[name]) or pa.types.is_map(schema[name]):
                also = "Select its fields as columns of their own in the source, turn"
            raise DataError(
                f"Feature {name} is of type {schema[name]}; a feature is a number or a text, or a "
                f"tensor of numbers. {also} it into numbers by data.derive, or list it in "
                "data.exclude."
            )
    return tensors


def _apart(
    schema: dict[str, pa.DataType], spec: Data, derived: Sequence[Derived]
) -> dict[str, list[str]]:
    """The dates that are features by their parts alone, with those that are wanted."""
    names = {column.name for column in derived}
    apart = {name: list(parts(name, type_, spec.dates)) for name, type_ in schema.items()}
    return {
        name: [part for part in found if part not in spec.exclude]
        for name, found in apart.items()
        if found and names.issuperset(found)
    }


def _check_weight(schema: dict[str, pa.DataType], spec: Data, features: list[str]) -> None:
    """The column of weights is a number, and has no other role."""
    if spec.weight is None:
        return
    if spec.weight in features or spec.weight in (spec.label, spec.split.column):
        other = "a feature" if spec.weight in features else "the label or the split"
        raise DataError(
            f"data.weight names column {spec.weight}, which is {other} too. Name another column."
        )
    if kind_of(schema[spec.weight]) != "number":
        raise DataError(
            f"data.weight names column {spec.weight} of type {schema[spec.weight]}; a weight is a "
            "number. Name another column, or convert it in the source."
        )


def _by(schema: dict[str, pa.DataType], spec: Data, cv: Cv | None) -> str | None:
    """The column that folds are made by: it is there, and of a type that the kind can use."""
    if cv is None or cv.by is None:
        return None
    by = cv.by
    if by not in schema:
        raise DataError(f"cv.by names column {by}, which the source lacks.{meant(by, schema)}")
    if by == spec.label:
        raise DataError(f"cv.by names the label {by}. Name a column of its own, or set cv.kind.")
    allowed = "a number, a date or a timestamp" if cv.kind == "time" else "a text or a whole number"
    if not (is_time if cv.kind == "time" else is_name)(schema[by]):
        raise DataError(
            f"cv.by names column {by} of type {schema[by]}; for kind {cv.kind} it has to be "
            f"{allowed}. Name another column, or convert it in the source."
        )
    return by
