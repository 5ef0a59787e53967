"""Standardisation as part of the model, and the whole that is exported: standardise, then net.

Training standardises a window of rows once and in advance, in numpy
(``ddlflow.data.shards.batches``); inference does it batch by batch, here. Both give the same bits,
because each number goes through one float32 subtraction and one float32 product, each rounded on
its own: never a fused multiply-add, whose result has other last bits.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ddlflow.data.fields import LENGTH, Field
from ddlflow.data.shards.tensor_statistics import TensorStatistics
from ddlflow.models.call import Batch, call
from ddlflow.models.label_scale import AS_IT_IS, LabelScale


class Standardise(nn.Module):
    """Each feature minus its mean, divided by its deviation; a missing value becomes the mean.

    Args:
        mean: [F], of the rows trained on, without the missing ones.
        variance: [F], likewise. A feature whose variance is zero, not finite, or so small that
            its scale leaves float32 is only shifted.

    Attributes:
        mean: float32 [F], a buffer; 0 where the mean is not finite (no row had a value).
        scale: float32 [F], a buffer: 1 / sqrt(variance).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: ArrayLike, variance: ArrayLike) -> None:
        super().__init__()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means = np.asarray(mean, dtype=np.float64).astype(np.float32)
            scales = (1.0 / np.sqrt(np.asarray(variance, dtype=np.float64))).astype(np.float32)
        usable = np.isfinite(scales) & (scales > 0)
        scales = np.where(usable, scales, np.float32(1))
        self.register_buffer("mean", torch.from_numpy(np.where(np.isfinite(means), means, 0)))
        self.register_buffer("scale", torch.from_numpy(scales))

    def forward(self, features: Tensor) -> Tensor:
        """Float32 [..., F] to float32 [..., F]; NaN becomes 0, infinity stays infinite."""
        shifted = (features - self.mean) * self.scale
        return torch.nan_to_num(shifted, nan=0.0, posinf=math.inf, neginf=-math.inf)


def standardises(
    tensors: Sequence[Field], statistics: Mapping[str, TensorStatistics] | None = None
) -> list[tuple[Field, Standardise]]:
    """Each tensor or sequence with what standardises it, by element or as a whole.

    Args:
        tensors: the fields.
        statistics: of the rows trained on; None: of no rows, to be loaded into.
    """
    found = []
    for field in tensors:
        known = None if statistics is None else statistics[field.name]
        mean = np.zeros(field.num_statistics) if known is None else known.mean
        variance = np.ones(field.num_statistics) if known is None else known.variance
        found.append((field, Standardise(mean, variance)))
    return found


class Predictor(nn.Module):
    """A trained model as a whole: raw features in; logits or a number in the label's units out.

    Args:
        standardise: with the statistics of the rows trained on.
        net: from ``ddlflow.models.build``.
        label: how a regression's net learned the label.
        inputs: names of the data's input fields, in its order.
        tensors: those of them that are tensors or sequences, each with its own statistics.
    """

    def __init__(
        self,
        standardise: Standardise,
        net: nn.Module,
        label: LabelScale = AS_IT_IS,
        inputs: Sequence[str] = ("features",),
        tensors: Sequence[tuple[Field, Standardise]] = (),
    ) -> None:
        super().__init__()
        self.standardise = standardise
        self.net = net
        self.label = label
        self.tensors = nn.ModuleList(standardise for _, standardise in tensors)
        self._tensors = tuple(field for field, _ in tensors)
        self._call = call(net, inputs)

    def forward(self, batch: Batch) -> Tensor:
        """A batch as encoded (features float32 [n, F], codes [n, C], tensors in their own dtype,
        sequences padded with anything) to logits as the net gives them, or to float64 predictions
        in the units of the source's label.
        """
        return self.label.to_source(self.outputs(batch))

    def outputs(self, batch: Batch) -> Tensor:
        """As ``forward``, but in the numbers that the net learned."""
        standardised = dict(batch)
        if "features" in batch:
            standardised["features"] = self.standardise(batch["features"])
        for field, standardise in zip(self._tensors, self.tensors, strict=True):
            values = standardise(batch[field.name].float())
            if field.is_sequence:
                values = _without_padding(values, batch[field.name + LENGTH])
            standardised[field.name] = values
        outputs: Tensor = self._call(standardised)
        return outputs


def _without_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """Sequences [n, steps, ...] with zeros behind their ends."""
    steps = torch.arange(values.shape[1], device=values.device)
    is_there = steps < lengths[:, None]
    return torch.where(is_there.reshape(*is_there.shape, *[1] * (values.dim() - 2)), values, 0.0)
