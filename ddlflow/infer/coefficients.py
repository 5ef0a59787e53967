"""The coefficients of a linear model in the source's units, with errors where they are defined.

A model learns standardised features, and a category as a weight of each code. What is told is what
a textbook has: the change of the prediction (of a class: of the log odds) for one unit of a
feature; of a category's level, against the level that is named as its reference; of several
classes, against the first one.

Standard errors are those of maximum likelihood: of a regression s^2 (X'X)^-1 with Student's t, of
classes the inverse of the observed information with the normal distribution. They describe the
optimum of the plain likelihood alone. So there are none under a penalty, with weighted rows, where
columns depend on each other, or where the training ended before the optimum: that is measured, as
the length of the Newton step that is left, in standard errors.
"""

import math

import numpy as np
from scipy import special

from ddlflow.data.coefficient_table import CoefficientTable, Term
from ddlflow.data.shards.manifest import Manifest
from ddlflow.infer.design import ShardToDescribe, empty, num_compared, of_shard, used_by, weights_of
from ddlflow.infer.estimate import Errors, compared, errors_of, layout_of, to_source
from ddlflow.infer.model import load_model
from ddlflow.infer.predict import Map
from ddlflow.spec.pipeline import LinearSection, Model, Train
from ddlflow.store.store import Place, store_of

MOST = 2_000  # coefficients whose errors are computed: a matrix of 32 MB a shard


def has_coefficients(spec: Model, *, of_tensors: bool = False) -> bool:
    """Whether a model is an affine map of its inputs, each of which means something by itself.

    Args:
        spec: the model.
        of_tensors: the data has tensors: a pixel has no unit, and is compared with no other.
    """
    is_affine = isinstance(spec, LinearSection) and spec.embedding is None and spec.pca is None
    return is_affine and not of_tensors


def coefficients(
    model_folder: Place, dataset: Place, *, spec: Train, threads: int, map_over: Map
) -> CoefficientTable:
    """The table of a linear model.

    Args:
        model_folder: of the model, for which ``has_coefficients``.
        dataset: the folder of the data set that it was trained on.
        spec: how it was trained.
        threads: of each worker.
        map_over: the engine's; its results are added in the shards' order.
    """
    model = load_model(model_folder, trust_code=True)  # it is this pipeline's own
    manifest = Manifest.load(dataset)
    weights = weights_of(model)
    found, why = None, _not_likelihood(spec, manifest)
    used = seen = used_by(model)
    if len(weights) * num_compared(model) > MOST:
        why = f"there are more than {MOST:,} coefficients"
    else:
        shards = manifest.shards_of("train")
        where = (store_of(model_folder).location, store_of(dataset).location)
        tasks = [ShardToDescribe(*where, shard, threads) for shard in shards]
        found = empty(model)
        for one in map_over(of_shard, tasks, "coefficients"):
            found.add(one)
        seen = used & (
            np.diag(found.gram) > 0
        )  # a constant feature, or a level without rows, is none
    layout = layout_of(model, seen)
    names = [str(name) for name in model.classes]
    is_many = model.task.family == "categorical"
    label = model.predictor.label
    own = compared(weights[:, 1:] - weights[:, :1] if is_many else weights, layout)
    back = to_source(model, layout)
    values = back @ own
    values[0] += label.mean + label.offset  # both are 0 where the label is a class
    errors = errors_of(found, layout, back) if found is not None and why is None else str(why)
    terms = [
        _term(
            layout.names[column],
            names[output + 1] if is_many else None,
            float(values[at, output]),
            float(own[at, output]) * label.deviation if column else None,
            (float(errors.std[output, at]), errors.degrees) if isinstance(errors, Errors) else None,
        )
        for output in range(values.shape[1])
        for at, column in enumerate(layout.kept.tolist())
    ]
    return CoefficientTable(
        terms=terms,
        references=layout.levels,
        reference_class=names[0] if is_many else None,
        undefined=errors if isinstance(errors, str) else None,
        rows=manifest.rows("train"),
    )


def _term(
    name: str,
    of_class: str | None,
    value: float,
    per_deviation: float | None,
    error: tuple[float, float] | None,
) -> Term:
    """A row of the table; ``error`` is the standard error with its degrees of freedom."""
    if error is None:
        return Term(name, of_class, value, per_deviation)
    std, degrees = error
    statistic = value / std if std else math.copysign(math.inf, value)
    below = -abs(statistic)
    tail = special.stdtr(degrees, below) if math.isfinite(degrees) else special.ndtr(below)
    return Term(name, of_class, value, per_deviation, std, statistic, float(2 * tail))


def _not_likelihood(spec: Train, manifest: Manifest) -> str | None:
    """Why what was minimised is no plain likelihood; None where it is one."""
    decay = getattr(spec.optimizer, "weight_decay", 0.0)
    if spec.penalty.l1 or spec.penalty.l2 or decay:
        return "the coefficients are shrunk by a penalty (train.penalty, weight_decay)"
    if manifest.has_weights or spec.class_weights is not None:
        return "rows have weights (data.weight, train.class_weights)"
    if not isinstance(spec.objective, str):
        return "the loss is one of your own"
    return None
