"""The manifest: a data set's shards, and all that is known of them. Written last, by rename."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from ddlflow.data.columns import Category, Columns, Label
from ddlflow.data.fields import Field, Transform
from ddlflow.data.shards.manifest_parts import (
    Fold,
    Shard,
    SplitName,
    SplitStatistics,
    ValueShard,
    add_statistics,
    fold_from_json,
    shards_from_json,
    shards_to_json,
    statistics_from_json,
    statistics_to_json,
    without_places,
)
from ddlflow.data.shards.statistics import Statistics, empty, merge
from ddlflow.data.shards.tensor_statistics import TensorStatistics, merge_tensors, no_values
from ddlflow.errors import DataError
from ddlflow.store import documents
from ddlflow.store.store import Place, store_of

__all__ = [
    "FORMAT",
    "NAME",
    "Fold",
    "Manifest",
    "Shard",
    "SplitName",
    "SplitStatistics",
    "ValueShard",
]

FORMAT = 3
NAME = "manifest.json"
_EACH: Transform = "by element"
# What is said of a data set. No model depends on it, so it is no part of the digest. (The fields
# are what columns and weights make them.)
ABOUT = (
    *("source", "settings", "dropped", "dropped_columns", "replaced"),
    *("constant", "warnings", "cv", "range_rows"),
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared data set.

    Attributes:
        columns: how the source's columns became numbers.
        shards: in the order of their rows in the source.
        groups: statistics by split and part.
        source: fingerprint of the source.
        settings: what made it.
        dropped: rows left out, by reason: where, label, missing, infinite.
        dropped_columns: rows that a column leaves out, by reason and column.
        replaced: values of features that are missing or infinite in the rows that are kept, by
            column: the mean stands for numbers, the bucket of unseen values for categories.
        constant: features with one value in all training rows.
        warnings: full sentences that a user should read.
        cv: the settings that dealt the training rows to folds, or None.
        folds: what each fold trains on and is validated on; none without ``cv``.
        range_rows: the rows of each range of the sources, those left out too.
    """

    columns: Columns
    shards: tuple[Shard, ...]
    groups: tuple[SplitStatistics, ...]
    source: str
    settings: dict[str, Any]
    dropped: dict[str, int]
    constant: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    cv: dict[str, Any] | None = None
    folds: tuple[Fold, ...] = ()
    dropped_columns: dict[str, dict[str, int]] = dataclass_field(default_factory=dict)
    replaced: dict[str, int] = dataclass_field(default_factory=dict)
    range_rows: tuple[int, ...] = ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The numeric features, in the order of the matrix's columns."""
        return self.columns.numeric

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categorical features."""
        return self.columns.categories

    @property
    def label(self) -> Label:
        """The label's name, kind and classes."""
        return self.columns.label

    @property
    def tensors(self) -> tuple[Field, ...]:
        """The features that are tensors or sequences."""
        return self.columns.tensors

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields of a sample, in the order of a batch."""
        numbers = Field(
            "features", "input", "float32", (len(self.feature_names),), "numbers", _EACH
        )
        codes = Field("categories", "input", "int32", (len(self.categories),), "codes")
        is_index = self.label.kind == "multiclass"
        target = Field("label", "target", "int64" if is_index else "float32", (), "class")
        if self.label.kind == "regression":
            target = replace(target, encoding="numbers")
        weight = Field("weight", "weight", "float32", (), "numbers")
        return (
            *([numbers] if self.feature_names else []),
            *([codes] if self.categories else []),
            *self.tensors,
            *([weight] if self.has_weights else []),
            target,
            Field("row", "row", "int64", (), "numbers"),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over all that a model trained on it depends on.

        These are the rows, but also what they are called and how they are read: names and order of
        the columns, vocabularies, classes, kind of the label, splits, folds and statistics. A field
        that is added to the manifest is part of it, unless it is one of ``ABOUT``.
        """
        value = {
            key: part for key, part in self._to_json().items() if key not in (*ABOUT, "fields")
        }
        value["shards"] = without_places(value["shards"])
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def shards_of(self, split: SplitName) -> list[Shard]:
        """The shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    @property
    def num_folds(self) -> int:
        """How many folds the training rows are dealt to; 0 without ``cv``."""
        return len(self.folds)

    def shards_of_fold(self, fold: int) -> tuple[list[Shard], list[Shard]]:
        """The shards that a fold trains on and those that it is validated on, each in order."""
        train, validation = map(frozenset, (self.folds[fold].train, self.folds[fold].validation))
        found = self.shards_of("train")
        return (
            [shard for shard in found if shard.fold in train],
            [shard for shard in found if shard.fold in validation],
        )

    def fold_statistics(self, fold: int) -> Statistics:
        """Exact statistics of the rows that a fold trains on: what standardises its model."""
        return self._merged(self._in_fold(fold))

    def label_statistics(self, split: SplitName = "train", fold: int | None = None) -> Statistics:
        """Exact statistics of a regression's label, as of one feature.

        Args:
            split: whose rows.
            fold: of the rows that this fold trains on instead.
        """
        wanted = self._in_fold(fold) if fold is not None else lambda group: group.split == split
        found = (group.label for group in self.groups if wanted(group))
        return merge((label for label in found if label is not None), empty(1, 0))

    @property
    def has_weights(self) -> bool:
        """Whether rows have a weight of their own."""
        return any(group.weights is not None for group in self.groups)

    def weighted_mean(self, split: SplitName) -> float | None:
        """The mean of a regression's label by the rows' weights; None without such weights."""
        total = None
        for group in self.groups:
            if group.split == split:
                total = add_statistics(total, group)
        return None if total is None else total.weighted_mean

    def weights(self, split: SplitName, fold: int | None = None) -> tuple[list[float], int]:
        """The sums of the rows' weights by class (of a regression: of all), and the rows: of a
        split, or of those that a fold trains on. Without weights of their own, rows weigh 1.
        """
        wanted = self._in_fold(fold) if fold is not None else lambda group: group.split == split
        sums, rows = np.zeros(max(1, len(self.label.classes))), 0
        for group in filter(wanted, self.groups):
            plain = group.statistics.class_counts if self.label.classes else group.statistics.rows
            sums += plain if group.weights is None else group.weights
            rows += group.statistics.rows
        return sums.tolist(), rows

    def rows(self, split: SplitName) -> int:
        """The rows of a split."""
        return sum(shard.rows for shard in self.shards_of(split))

    def statistics(self, split: SplitName) -> Statistics:
        """Exact statistics of a split's rows, all folds together."""
        return self._merged(lambda group: group.split == split)

    def tensor_statistics(
        self, split: SplitName = "train", fold: int | None = None
    ) -> dict[str, TensorStatistics]:
        """Exact statistics of each tensor or sequence.

        Args:
            split: whose rows.
            fold: of the rows that this fold trains on instead.
        """
        wanted = self._in_fold(fold) if fold is not None else lambda group: group.split == split
        groups = [group for group in self.groups if wanted(group)]
        return {
            one.name: merge_tensors((g.tensors[one.name] for g in groups), no_values(one))
            for one in self.tensors
        }

    def _in_fold(self, fold: int) -> Callable[[SplitStatistics], bool]:
        return lambda group: group.split == "train" and group.fold in self.folds[fold].train

    def _merged(self, wanted: Callable[[SplitStatistics], bool]) -> Statistics:
        start = empty(len(self.columns.numeric), len(self.columns.label.classes))
        return merge((group.statistics for group in self.groups if wanted(group)), start)

    def save(self, place: Place) -> None:
        """Writes the manifest: from now on the data set exists."""
        documents.save(store_of(place), NAME, self._to_json() | {"digest": self.digest})

    def _to_json(self) -> dict[str, Any]:
        """All of it but the digest."""
        value = {
            "format": FORMAT,
            "tensors": self._tensors(),
            "fields": [asdict(one) for one in self.fields],
            "columns": self.columns.to_json(),
            "shards": shards_to_json(self.shards),
            "groups": [statistics_to_json(group) for group in self.groups],
            "folds": [asdict(fold) for fold in self.folds],
        }
        return value | {name: getattr(self, name) for name in ABOUT}

    def _tensors(self) -> dict[str, Any]:
        """Shape and type of each column of the shards, for readers that know no ddlflow."""
        label_type = "int64" if self.label.kind == "multiclass" else "float32"
        tensors = {
            "features": {"dtype": "float32", "shape": [len(self.columns.numeric)]},
            "categories": {"dtype": "int32", "shape": [len(self.columns.categories)]},
        }
        tensors = {name: value for name, value in tensors.items() if value["shape"] != [0]}
        for one in self.tensors:  # of a sequence a run, into the shards of its values
            kind = ("int64", (2,)) if one.is_sequence else (one.dtype, one.shape)
            tensors[one.name] = {"dtype": kind[0], "shape": list(kind[1])}
        return tensors | {
            **({"weight": {"dtype": "float32", "shape": []}} if self.has_weights else {}),
            "label": {"dtype": label_type, "shape": []},
            "row": {"dtype": "int64", "shape": []},
        }

    @classmethod
    def load(cls, place: Place) -> "Manifest":
        """Reads the manifest of a data set.

        Raises:
            DataError: there is none, it is damaged, or a newer ddlflow wrote it.
        """
        store = store_of(place)
        path = f"{store.location}/{NAME}"
        if not store.exists(NAME):
            where = store.location
            raise DataError(f"{where} holds no data set: {NAME} is missing. Prepare the data.")
        value = documents.load(store, NAME)
        again = "Prepare the data again with --fresh."
        if not isinstance(value, dict) or not isinstance(value.get("format"), int):
            raise DataError(f"{path} is damaged. {again}")
        if value["format"] != FORMAT:
            raise DataError(
                f"{path} has format {value['format']}; this ddlflow reads {FORMAT}. {again}"
            )
        try:
            manifest = cls(
                columns=Columns.from_json(value["columns"]),
                shards=shards_from_json(value["shards"]),
                groups=tuple(map(statistics_from_json, value["groups"])),
                source=value["source"],
                settings=value["settings"],
                dropped=value["dropped"],
                dropped_columns=value["dropped_columns"],
                replaced=value["replaced"],
                constant=tuple(value["constant"]),
                warnings=tuple(value["warnings"]),
                range_rows=tuple(value["range_rows"]),
                cv=value["cv"],
                folds=tuple(map(fold_from_json, value["folds"])),
            )
            damaged = manifest.digest != value["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}). {again}") from error
        if damaged:
            raise DataError(f"{path} is damaged: its digest does not fit its shards. {again}")
        return manifest
