"""The columns of predictions, alike wherever they are written: one of what is predicted, and for
classes one of each probability.

Of two classes the column ``probability`` is that of the second; of more each class has a column of
its own, ``probability_<class>``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PREDICTION, PROBABILITY = "prediction", "probability"


def classified(
    index: npt.NDArray[np.int64], scores: Mapping[str, npt.NDArray[Any]], classes: Sequence[Any]
) -> dict[str, pa.Array]:
    """The columns of a classifier.

    Args:
        index: [n] of the predicted class.
        scores: by the column's name, [n] each.
        classes: their names, in the order of the outputs.
    """
    predicted = pa.array(classes).take(pa.array(index))
    return {PREDICTION: predicted} | {name: pa.array(own) for name, own in scores.items()}
