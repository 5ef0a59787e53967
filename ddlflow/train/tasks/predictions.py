"""The columns of predictions, alike wherever they are written: one of what is predicted, and for
classes one of each probability.

Of two classes the column ``probability`` is that of the second; of more each class has a column of
its own, ``probability_<class>``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

PREDICTION, PROBABILITY = "prediction", "probability"


def names(kind: str, classes: Sequence[Any]) -> list[str]:
    """The names of the columns.

    Args:
        kind: binary, multiclass or regression.
        classes: of the label, in the order of the outputs.
    """
    if kind == "regression":
        return [PREDICTION]
    if kind == "binary":
        return [PREDICTION, PROBABILITY]
    return [PREDICTION, *(f"{PROBABILITY}_{name}" for name in classes)]


def columns(found: Mapping[str, np.ndarray], classes: Sequence[Any]) -> dict[str, pa.Array]:
    """The columns, by name.

    Args:
        found: arrays as ``Objective.predictions`` names them, of n rows each.
        classes: as in `names`.
    """
    if not classes:
        return {PREDICTION: pa.array(found["prediction"].astype(np.float64))}
    if "probability" in found:
        scores = {PROBABILITY: pa.array(found["probability"])}
        index = (found["probability"] >= 0.5).astype(np.int64)
    else:
        of_class = found["probabilities"]
        called = names("multiclass", classes)[1:]
        scores = {
            name: pa.array(np.ascontiguousarray(of_class[:, k])) for k, name in enumerate(called)
        }
        index = found["index"]
    return {PREDICTION: pa.array(classes).take(pa.array(index)), **scores}


def described(kind: str, classes: Sequence[Any]) -> dict[str, Any]:
    """What a reader of the columns is told: the classes, and which one ``probability`` is of."""
    if kind == "regression":
        return {}
    of = {"probability_of": classes[1]} if kind == "binary" else {}
    return {"classes": list(classes), **of}
