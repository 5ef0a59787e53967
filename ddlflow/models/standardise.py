"""Standardisation as part of the model, and the whole that is exported: standardise, then net.

Training standardises a window of rows once and in advance, in numpy
(``ddlflow.data.shards.batches``); inference does it batch by batch, here. Both give the same bits,
because each number goes through one float32 subtraction and one float32 product, each rounded on
its own: never a fused multiply-add, whose result has other last bits.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

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
        """Float32 [n, F] to float32 [n, F]; NaN becomes 0, infinity stays infinite."""
        shifted = (features - self.mean) * self.scale
        return torch.nan_to_num(shifted, nan=0.0, posinf=math.inf, neginf=-math.inf)


class Predictor(nn.Module):
    """A trained model as a whole: raw features in; logits or a number in the label's units out.

    Args:
        standardise: with the statistics of the rows trained on.
        net: from ``ddlflow.models.build``.
        label: how a regression's net learned the label.
        inputs: names of the data's input fields, in its order.
    """

    def __init__(
        self,
        standardise: Standardise,
        net: nn.Module,
        label: LabelScale = AS_IT_IS,
        inputs: Sequence[str] = ("features",),
    ) -> None:
        super().__init__()
        self.standardise = standardise
        self.net = net
        self.label = label
        self._call = call(net, inputs)

    def forward(self, batch: Batch) -> Tensor:
        """A batch as encoded (features float32 [n, F], codes [n, C] where the model has any) to
        logits as the net gives them, or to float64 predictions in the units of the source's label.
        """
        return self.label.to_source(self.outputs(batch))

    def outputs(self, batch: Batch) -> Tensor:
        """As ``forward``, but in the numbers that the net learned."""
        standardised = {**batch, "features": self.standardise(batch["features"])}
        outputs: Tensor = self._call(standardised)
        return outputs
