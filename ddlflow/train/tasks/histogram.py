"""A feature's histogram for each class: the signal-against-background picture, mergeable.

The edges come first, from the data set's statistics, so that workers fill equal bins and their
counts add up exactly.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddlflow.data.scored import FeatureCounts


def histogram_range(
    mean: float, standard_deviation: float, minimum: float, maximum: float
) -> tuple[float, float]:
    """Where a feature's histogram begins and ends: mean +- 4 standard deviations, in its range.

    A few far outliers then fill the bins below and above instead of squeezing the rest into one.
    """
    low = max(minimum, mean - 4 * standard_deviation)
    high = min(maximum, mean + 4 * standard_deviation)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def histogram_edges(low: float, high: float, bins: int = 60) -> list[float]:
    """``bins`` equal steps from low to high, as FeatureHistogram takes them."""
    return [float(edge) for edge in np.linspace(low, high, bins + 1)]


class FeatureHistogram:
    """Rows of each class over one numeric feature.

    Attributes:
        edges: ascending edges of the bins, any widths; a bin holds its lower edge, the last one
            its upper edge too.
        counts: int64 [num_classes, bins + 3]: below, the bins, above, missing (NaN).

    Args:
        feature: its name, for the plot.
        edges: see there.
        num_classes: 1 for a regression, whose labels are then not read.
    """

    def __init__(self, feature: str, edges: Sequence[float], num_classes: int) -> None:
        self.feature = feature
        self.edges = [float(edge) for edge in edges]
        self.counts = torch.zeros(num_classes, len(self.edges) + 2, dtype=torch.int64)

    @torch.no_grad()
    def update(self, values: Tensor, labels: Tensor) -> None:
        """Adds rows: values float [n], labels [n] as the shards hold them (class 0, 1, ...)."""
        values = values.contiguous()  # a column of a shard's rows is strided
        if self.counts.device != values.device:
            self.counts = self.counts.to(values.device)
        num_classes, width = self.counts.shape
        edges = torch.tensor(self.edges, dtype=values.dtype, device=values.device)
        column = torch.bucketize(values, edges, right=True)
        column = torch.where(values == edges[-1], width - 3, column)
        column = torch.where(values.isnan(), width - 1, column)
        row = labels.long() * width if num_classes > 1 else 0
        index = column + row
        self.counts.view(-1).scatter_add_(0, index, torch.ones_like(index))

    def merge(self, other: "FeatureHistogram") -> None:
        """Adds another's rows; feature, edges and classes have to be the same."""
        if (self.feature, self.edges) != (other.feature, other.edges):
            raise ValueError(
                f"histograms of {self.feature} and {other.feature} differ in name or edges"
            )
        self.counts = self.counts + other.counts.to(self.counts.device)

    def curves(self) -> FeatureCounts:
        """What a report draws."""
        counts = self.counts.cpu()
        return FeatureCounts(
            feature=self.feature,
            edges=self.edges,
            counts=counts[:, 1:-2].tolist(),
            below=counts[:, 0].tolist(),
            above=counts[:, -2].tolist(),
            missing=counts[:, -1].tolist(),
        )
