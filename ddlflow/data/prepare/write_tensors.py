"""Tensors and sequences of a piece on their way into its shards.

A tensor is a column of the samples' shard, in its own dtype. Of a sequence the samples' shard has a
run (first, count) for each row, and the steps lie in a shard of values beside it, in the order of
its rows: rows that are neighbours have steps that are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.fields import Field
from ddlflow.data.padding import in_runs
from ddlflow.data.shards.manifest_parts import ValueShard
from ddlflow.data.shards.shard import write_shard
from ddlflow.data.shards.tensor_statistics import TensorStatistics, of_values
from ddlflow.data.tensors import Tensors, read_tensors
from ddlflow.store.store import Store
from ddlflow.store.stored import StoredFile

Order = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class PieceTensors:
    """The tensors of a piece's rows.

    Attributes:
        fields: which.
        columns: of each, as the source has them.
    """

    fields: tuple[Field, ...]
    columns: tuple[Tensors, ...]

    @classmethod
    def read(cls, batch: pa.RecordBatch, fields: Sequence[Field]) -> "PieceTensors":
        """Those of a batch."""
        columns = (read_tensors(batch.column(field.name), field) for field in fields)
        return cls(tuple(fields), tuple(columns))

    def write(self, place: Store, path: str, rows: Order) -> "ShardTensors":
        """What a shard of these rows gets; writes its shards of values.

        Args:
            place: of the data set.
            path: of the samples' shard in it.
            rows: of the piece, in the shard's order.
        """
        columns: dict[str, npt.NDArray[Any]] = {}
        statistics: dict[str, TensorStatistics] = {}
        values: list[ValueShard] = []
        for number, (field, column) in enumerate(zip(self.fields, self.columns, strict=True)):
            if column.counts is None:
                taken = np.take(column.values, rows, axis=0, mode="clip")
                statistics[field.name] = of_values(taken, field)
                columns[field.name] = taken
                continue
            counts = column.counts[rows]
            firsts = np.cumsum(counts) - counts
            steps = in_runs(column.starts[rows], counts)
            taken = np.take(column.values, steps, axis=0, mode="clip")
            statistics[field.name] = of_values(taken, field, counts)
            beside = f"{path.removesuffix('.arrow')}-values{number}.arrow"
            sha256 = write_shard(StoredFile(place, beside), {"values": taken})
            longest = int(counts.max(initial=0))
            values.append(ValueShard(field.name, beside, len(taken), longest, sha256))
            columns[field.name] = np.stack([firsts, counts], axis=1)
        return ShardTensors(columns, statistics, tuple(values))


@dataclass(frozen=True, slots=True)
class ShardTensors:
    """What a shard has of tensors and sequences.

    Attributes:
        columns: its own columns, by field.
        statistics: of each field.
        values: the files of its sequences' steps.
    """

    columns: dict[str, npt.NDArray[Any]]
    statistics: dict[str, TensorStatistics]
    values: tuple[ValueShard, ...]
