"""The rows of some shards, one after the other: mapped, standardised as they are copied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddlflow.data.shards import order
from ddlflow.data.shards.shard import map_shard

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
COLUMNS = ("features", "categories", "weight", "label")  # what training reads of a shard


@dataclass(frozen=True, slots=True)
class Standardisation:
    """(x - mean) * scale and NaN -> 0, as the model's own buffers have it.

    Attributes:
        mean: float32 [F].
        scale: float32 [F].
        has_missing: whether any row holds a NaN; where none does, nothing looks for one.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    has_missing: bool


class Rows:
    """The rows of some shards, one after the other, mapped and never read as a whole.

    Args:
        paths: the shards' files.
        standardisation: put on features as they are copied; none: they stay as they are.
        label: what labels become as they are copied; none: they stay as they are.

    Attributes:
        rows: how many there are.
        columns: the names that the shards have, of `COLUMNS`.
        inputs: those of them that a model may ask for.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        standardisation: Standardisation | None,
        label: Callable[[Array], Array] | None = None,
    ) -> None:
        self._shards = [map_shard(path) for path in paths]
        for shard in self._shards:  # models are called with features first, even with none of them
            shard.setdefault("features", np.empty((len(shard["label"]), 0), np.float32))
        sizes = [len(shard["label"]) for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.rows = int(self._starts[-1])
        self.columns = [name for name in COLUMNS if self._shards and name in self._shards[0]]
        self.inputs = [name for name in self.columns if name not in ("weight", "label")]
        self._standardisation = standardisation
        self._label = label
        if standardisation is not None:
            # Tiled to a block's length: an operation on flat arrays of one length runs at memory
            # speed, one that broadcasts 28 columns runs at half of it (measured).
            self._mean = np.tile(standardisation.mean, order.BLOCK_ROWS)
            self._scale = np.tile(standardisation.scale, order.BLOCK_ROWS)

    def empty(self, rows: int) -> Arrays:
        """Uninitialised arrays for so many rows, one a column."""
        shapes = {name: self._shards[0][name] for name in self.columns}
        return {name: np.empty((rows, *a.shape[1:]), a.dtype) for name, a in shapes.items()}

    def read(self, start: int, stop: int, out: Arrays, at: int) -> None:
        """Copies rows [start, stop) to ``out[column][at:]``, for each column that ``out`` has.

        Features and labels are standardised. ``row``, the rows' numbers in the source, is no
        training column, but can be read alone.
        """
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[shard + 1]), start + order.BLOCK_ROWS)
            low, high = start - self._starts[shard], end - self._starts[shard]
            for name, column in out.items():
                source = self._shards[shard][name][low:high]
                target = column[at : at + end - start]
                if name == "features" and self._standardisation is not None:
                    self._standardise(source, target)
                elif name == "label" and self._label is not None:
                    np.copyto(target, self._label(source))
                else:
                    np.copyto(target, source)
            at += end - start
            start = end
            if start == self._starts[shard + 1]:
                shard += 1

    def _standardise(self, source: Array, target: Array) -> None:
        assert self._standardisation is not None
        flat = target.reshape(-1)
        np.subtract(source.reshape(-1), self._mean[: flat.size], out=flat)
        np.multiply(flat, self._scale[: flat.size], out=flat)
        if self._standardisation.has_missing:
            np.copyto(flat, 0, where=np.isnan(flat))
