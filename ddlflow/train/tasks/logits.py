"""Whether what a model gives for logits seems to be something else."""

import torch
from torch import Tensor

SPREAD_LEAST = 1e-6  # a last layer that starts at 0 says nothing


def advice_on_logits(outputs: Tensor, name: str, *, of_one_class: bool) -> str | None:
    """What outputs of many unlike rows seem to be, with advice, where they seem to be no logits.

    Args:
        outputs: [n] of the second of two classes, or [n, classes].
        name: of the loss.
        of_one_class: whether they are of one class; else the classes' shares have to add up.
    """
    outputs = outputs.double()
    least, greatest = float(outputs.min()), float(outputs.max())
    if greatest - least < SPREAD_LEAST:
        return None
    if least >= 0 and greatest <= 1 and (of_one_class or _all_one(outputs.sum(1))):
        last = "sigmoid" if of_one_class else "softmax"
        return (
            f"probabilities (all in 0 to 1); {name} expects logits and learns badly from "
            f"them. Leave the last {last} out: predictions are probabilities all the same."
        )
    if greatest <= 0 and (of_one_class or _all_one(outputs.exp().sum(1))):
        last = "logsigmoid" if of_one_class else "log_softmax"
        return (
            f"log-probabilities; {name} expects logits and normalises them itself. Leave "
            f"the last {last} out."
        )
    return None


def _all_one(sums: Tensor) -> bool:
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
