"""The rule of early stopping, for a training alone and for each member of a sweep."""

import math

from ddlflow.spec.pipeline import EarlyStopping
from ddlflow.train.tasks.measures import Better


def improves(rule: EarlyStopping, better: Better, value: float, best: float) -> bool:
    """Whether an epoch's value of the rule's metric is the best so far, by ``min_delta``.

    Args:
        rule: the pipeline's ``train.early_stopping``.
        better: which of two values of the metric is.
        value: of the metric on the validation rows.
        best: so far; NaN where there is none, which any value is better than.
    """
    sign = 1 if better == "higher" else -1
    return sign * (value - best) > rule.min_delta or math.isnan(best)


def is_out_of_patience(rule: EarlyStopping, epoch: int, best_epoch: int) -> bool:
    """Whether so many epochs have passed since the best one (both from 1)."""
    return epoch - best_epoch >= rule.patience
