"""A regression's label as the net learns it, and the way back.

A net starts out near 0 and learns in steps of its learning rate: of a label around 300,000 it
would see nothing but the mean for thousands of steps. So it learns how far a label lies from the
mean of the training rows, in their deviations, and what it says is turned back. Both are done in
float64, one number at a time, so that numpy and torch give the same bits.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LabelScale:
    """What the net learns is (label - mean) / deviation; the label is as the shards hold it.

    Attributes:
        mean: of the training rows' labels.
        deviation: their standard deviation.
        offset: what was taken off the label on its way into the shards.
        loss_unit: a loss of the net's numbers times this is one of the label's: the deviation
            squared for a squared error, 1 for a loss whose units are not known.
    """

    mean: float = 0.0
    deviation: float = 1.0
    offset: float = 0.0
    loss_unit: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def of_array(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The shards' labels [n] as the net learns them, float32 [n]."""
        return labels if self == AS_IT_IS else self.of_array64(labels).astype(np.float32)

    def of_array64(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """As ``of_array``, not rounded to float32."""
        return (labels.astype(np.float64) - self.mean) / self.deviation

    def of_labels(self, labels: Tensor) -> Tensor:
        """As ``of_array``, of a tensor of any shape."""
        if self == AS_IT_IS:
            return labels
        return ((labels.double() - self.mean) / self.deviation).float()

    def to_labels(self, outputs: Tensor) -> Tensor:
        """The net's outputs in the shards' units: float64, or as they are where nothing is done."""
        if self == AS_IT_IS:
            return outputs
        return outputs.double() * self.deviation + self.mean

    def to_source(self, outputs: Tensor) -> Tensor:
        """The net's outputs in the units of the source, likewise."""
        return self.to_labels(outputs) + self.offset if self.offset else self.to_labels(outputs)


AS_IT_IS = LabelScale()
