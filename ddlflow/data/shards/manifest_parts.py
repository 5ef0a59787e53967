"""What a manifest lists: shards, statistics of splits, folds; each with its form in JSON.

Of a hundred thousand shards each attribute is one list: a parser reads and hashes ten lists in a
tenth of the time of as many objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal, Protocol

from ddlflow.data.shards.statistics import Statistics, merge
from ddlflow.data.shards.tensor_statistics import TensorStatistics, merge_two

SplitName = Literal["train", "validation", "test"]


class ShardFile(Protocol):
    """A file of a data set: of rows, or of the steps of their sequences."""

    @property
    def path(self) -> str:
        """Relative to the data set's folder."""

    @property
    def sha256(self) -> str:
        """Of the file."""


@dataclass(frozen=True, slots=True)
class ValueShard:
    """One file of the steps of a shard's sequences, in the order of its rows.

    Attributes:
        field: the sequences' name; the shard has a run (first, count) in this file for each row.
        path: relative to the data set's folder.
        rows: steps of all sequences.
        longest: steps of the longest one.
        sha256: of the file.
    """

    field: str
    path: str
    rows: int
    longest: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of rows.

    Attributes:
        path: relative to the data set's folder.
        split: train, validation or test.
        fold: the part of the training rows that it belongs to (`Fold`), or None.
        rows: their number.
        sha256: of the file.
        first_row: no row of it has a lower number in the source, nor any shard after it.
        values: the files of its sequences' steps, one a sequence field.
    """

    path: str
    split: SplitName
    fold: int | None
    rows: int
    sha256: str
    first_row: int = 0
    values: tuple[ValueShard, ...] = ()

    @property
    def files(self) -> list[ShardFile]:
        """All of its files, that of the rows first."""
        return [self, *self.values]


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """The exact statistics of all shards of one split and part (``fold``, as a shard's).

    Attributes:
        split: train, validation or test.
        fold: the part.
        statistics: of the numeric features, and the rows of each class.
        label: of a regression's label, as of one feature; None where the label is a class.
        weights: the sum of the rows' weights by class (of a regression: of all); None without
            ``data.weight``.
        weighted_mean: of a regression's label, by the rows' weights; None without ``data.weight``,
            where all weights are 0, and where the label is a class.
        tensors: of each tensor or sequence, by field.
    """

    split: SplitName
    fold: int | None
    statistics: Statistics
    label: Statistics | None = None
    weights: tuple[float, ...] | None = None
    weighted_mean: float | None = None
    tensors: Mapping[str, TensorStatistics] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold trains on and is validated on: parts of the training rows, each some shards.

    In most kinds part k is what fold k is validated on, and every other part what it trains on.
    Folds in time are made of more parts: the segments between all their first and last times.

    Attributes:
        name: its number, or what the column of predefined folds calls it.
        train: the parts to train on.
        validation: the parts to be validated on.
    """

    name: str
    train: tuple[int, ...]
    validation: tuple[int, ...]


_COLUMNS = ("path", "split", "fold", "rows", "sha256", "first_row")


def shards_to_json(shards: Sequence[Shard]) -> dict[str, list[Any]]:
    """A list for each attribute; ``values`` only where there are sequences."""
    found = {name: [getattr(shard, name) for shard in shards] for name in _COLUMNS}
    if any(shard.values for shard in shards):
        found["values"] = [[asdict(one) for one in shard.values] for shard in shards]
    return found


def shards_from_json(value: Mapping[str, list[Any]] | list[dict[str, Any]]) -> tuple[Shard, ...]:
    """The inverse of ``shards_to_json``; reads what formats 1 and 2 have, objects in a list, too.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    if isinstance(value, list):  # recorded with a run before format 3
        return tuple(Shard(**{**one, "values": _values(one.get("values", []))}) for one in value)
    if {*value} - {"values"} != {*_COLUMNS}:
        raise ValueError(f"shards have {', '.join(sorted(value))}")
    columns = [value[name] for name in _COLUMNS]
    if "values" in value:
        columns.append([_values(own) for own in value["values"]])
    return tuple(Shard(*row) for row in zip(*columns, strict=True))


def _values(found: list[dict[str, Any]]) -> tuple[ValueShard, ...]:
    return tuple(ValueShard(**one) for one in found)


def without_places(shards: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Shards in JSON, less where they lie and what of the source lies before them.

    Neither says anything of their rows.
    """
    found = {k: values for k, values in shards.items() if k not in ("path", "first_row")}
    if "values" in found:
        found["values"] = [[{**one, "path": None} for one in own] for own in found["values"]]
    return found


def statistics_to_json(group: SplitStatistics) -> dict[str, Any]:
    """Plain values; ``tensors`` only where there are any."""
    found: dict[str, Any] = {
        "split": group.split,
        "fold": group.fold,
        "statistics": group.statistics.to_json(),
        "label": None if group.label is None else group.label.to_json(),
        "weights": group.weights,
        "weighted_mean": group.weighted_mean,
    }
    if group.tensors:
        found["tensors"] = {name: one.to_json() for name, one in group.tensors.items()}
    return found


def statistics_from_json(value: dict[str, Any]) -> SplitStatistics:
    """The inverse of ``statistics_to_json``."""
    return SplitStatistics(
        value["split"],
        value["fold"],
        Statistics.from_json(value["statistics"]),
        None if value["label"] is None else Statistics.from_json(value["label"]),
        None if value["weights"] is None else tuple(value["weights"]),
        value["weighted_mean"],
        {name: TensorStatistics.from_json(one) for name, one in value.get("tensors", {}).items()},
    )


def add_statistics(total: SplitStatistics | None, part: SplitStatistics) -> SplitStatistics:
    """The statistics of all rows together: as `merge` of those of each, which come in order."""
    if total is None:
        return part
    label = total.label
    if label is not None and part.label is not None:
        label = merge([part.label], label)
    weights, mean = total.weights or (), total.weighted_mean
    if part.weights is not None:
        weights = tuple(map(sum, zip_longest(weights, part.weights, fillvalue=0.0)))
    if part.weights is not None and part.weighted_mean is not None:
        share = part.weights[0] / weights[0]
        mean = part.weighted_mean if mean is None else mean + (part.weighted_mean - mean) * share
    return replace(
        total,
        statistics=merge([part.statistics], total.statistics),
        label=label,
        weights=weights or None,
        weighted_mean=mean,
        tensors={name: merge_two(total.tensors[name], one) for name, one in part.tensors.items()},
    )


def fold_from_json(value: dict[str, Any]) -> Fold:
    """The inverse of ``dataclasses.asdict``."""
    return Fold(value["name"], tuple(value["train"]), tuple(value["validation"]))
