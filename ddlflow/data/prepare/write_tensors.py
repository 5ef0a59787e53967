"""Tensors and sequences of a piece on their way into its shards.

A tensor is a column of the samples' shard, in its own dtype. Of a sequence the samples' shard has a
run (first, count) for each row, and the steps lie in a shard of values beside it, in the order of
its rows: rows that are neighbours have steps that are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ddlflow.data.fields import Field
from ddlflow.data.shards.shard import write_shard
from ddlflow.data.shards.tensor_statistics import of_values
from ddlflow.data.tensors import Tensors, read_tensors

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

    def write(
        self, folder: Path, path: str, rows: Order
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What a shard of these rows gets, and what is told of it; writes its shards of values.

        Args:
            folder: of the data set.
            path: of the samples' shard in it.
            rows: of the piece, in the shard's order.

        Returns:
            The shard's columns, and JSON: ``tensors`` (statistics by field) and ``values`` (of
            each sequence field, path, rows and sha256), where there are any.
        """
        columns: dict[str, npt.NDArray[Any]] = {}
        statistics: dict[str, Any] = {}
        values: list[dict[str, Any]] = []
        for number, (field, column) in enumerate(zip(self.fields, self.columns, strict=True)):
            if column.counts is None:
                taken = np.take(column.values, rows, axis=0, mode="clip")
                statistics[field.name] = of_values(taken, field).to_json()
                columns[field.name] = taken
                continue
            counts = column.counts[rows]
            firsts = np.cumsum(counts) - counts
            steps = np.repeat(column.starts[rows] - firsts, counts) + np.arange(counts.sum())
            taken = np.take(column.values, steps, axis=0, mode="clip")
            statistics[field.name] = of_values(taken, field, counts).to_json()
            columns[field.name] = np.stack([firsts, counts], axis=1)
            beside = f"{path.removesuffix('.arrow')}-values{number}.arrow"
            sha256 = write_shard(folder / beside, {"values": taken})
            told = {"field": field.name, "path": beside, "rows": len(taken), "sha256": sha256}
            values.append(told)
        told = {"tensors": statistics} if statistics else {}
        return columns, told | ({"values": values} if values else {})
