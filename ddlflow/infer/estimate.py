"""From the columns of a design matrix to coefficients in the source's units, and their errors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ddlflow.infer.design import Float64, Information
from ddlflow.infer.model import TrainedModel

# Of a column's squared length, what has to be left beside the columns before it: float32 features
# leave some 1e-14 where one is a sum of others.
INDEPENDENT = 1e-10
AT_OPTIMUM = 0.05  # standard errors that the coefficients may lie away from it
IN_DOUBT = 0.01  # rows; below it, classes are told apart without error
OTHER = "(rare, unseen or missing)"  # the level that is code 0 of a category
NAMED = 8  # columns in a message


@dataclass(frozen=True, slots=True)
class CoefficientLayout:
    """The columns of a design matrix that stand for coefficients.

    Attributes:
        names: [p] of all columns.
        reference: [p] of a category's level, the column of its reference; else -1.
        kept: the columns that have a coefficient: all but references and those without values.
        levels: of each category, its reference.
    """

    names: list[str]
    reference: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    levels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Errors:
    """Standard errors [K, kept] of K outputs, and the degrees of freedom; inf for classes."""

    std: Float64
    degrees: float


def layout_of(model: TrainedModel, seen: npt.NDArray[np.bool_]) -> CoefficientLayout:
    """What the columns are.

    The reference of a category is its first level with rows, in the order of its values.

    Args:
        model: a linear one.
        seen: [p] which columns hold anything but 0 in the training rows.
    """
    names = ["intercept", *model.columns.numeric]
    reference = [-1] * len(names)
    levels: dict[str, str] = {}
    for category in model.columns.categories:
        first = len(names)
        ordered = np.argsort(np.array(category.values), kind="stable") + 1
        codes = [code for code in [*ordered.tolist(), 0] if seen[first + code]]
        is_used = bool(codes)
        codes = codes or [0]
        words = [OTHER, *map(str, category.values)]
        names += [f"{category.name}={word}" for word in words]
        reference += [first + codes[0]] * category.size
        if is_used:
            levels[category.name] = words[codes[0]]
    kept = [k for k in range(len(names)) if seen[k] and reference[k] != k]
    return CoefficientLayout(names, np.array(reference), np.array(kept), levels)


def compared(weights: Float64, layout: CoefficientLayout) -> Float64:
    """Weights [p, K] of all columns -> [kept, K] against the references, in the net's units."""
    is_level = layout.reference >= 0
    own = weights - np.where(is_level[:, None], weights[layout.reference], 0.0)
    own[0] += weights[np.unique(layout.reference[is_level])].sum(axis=0)
    found: Float64 = own[layout.kept]
    return found


def to_source(model: TrainedModel, layout: CoefficientLayout) -> Float64:
    """The matrix [kept, kept] from the net's coefficients to those in the source's units.

    What a label's mean and offset add to the intercept is left to the caller.
    """
    columns, deviation = model.columns, model.predictor.label.deviation
    mean = model.predictor.standardise.mean.double().numpy()
    scale = model.predictor.standardise.scale.double().numpy()
    back = np.eye(len(layout.kept)) * deviation
    for at, column in enumerate(layout.kept.tolist()):
        if 0 < column <= len(columns.numeric):
            feature = column - 1
            shift = mean[feature] + columns.offsets.get(columns.numeric[feature], 0)
            back[at, at] *= scale[feature]
            back[0, at] = -back[at, at] * shift
    return back


def errors_of(found: Information, layout: CoefficientLayout, back: Float64) -> Errors | str:
    """The standard errors of maximum likelihood, or a clause that says why there are none.

    Args:
        found: what all training rows say.
        layout: of the design matrix.
        back: of ``to_source``.
    """
    columns, outputs = len(layout.names), len(found.gradient) // len(layout.names)
    size = len(layout.kept)
    depends = _dependent(found.gram[np.ix_(layout.kept, layout.kept)])
    if depends:
        names = [layout.names[layout.kept[at]] for at in depends]
        more = ", ..." if len(names) > NAMED else ""
        return (
            "columns are linearly dependent on those before them: "
            f"{', '.join(names[:NAMED])}{more} (list them in data.exclude)"
        )
    if found.rows <= size:
        return f"{found.rows:,} rows are too few for {size:,} coefficients"
    chosen = (np.arange(outputs)[:, None] * columns + layout.kept).reshape(-1)
    curvature = found.curvature[np.ix_(chosen, chosen)]
    gradient = found.gradient[chosen]
    lengths = np.sqrt(np.diag(curvature))
    # An intercept's curvature is the sum of p (1 - p): the rows that are still in doubt.
    doubts = lengths.reshape(outputs, size)[:, 0] ** 2
    if not np.all(lengths > 0) or doubts.min() < IN_DOUBT or _dependent(curvature):
        return "the classes can be told apart without error, so no coefficients are the likeliest"
    inverse = np.linalg.inv(curvature / np.outer(lengths, lengths)) / np.outer(lengths, lengths)
    degrees = np.inf if found.squares is None else found.rows - size
    variance = 1.0 if found.squares is None else found.squares / degrees
    away = float(np.sqrt(max(gradient @ inverse @ gradient, 0.0) / variance)) if variance else 0.0
    if not away <= AT_OPTIMUM:
        return (
            f"the training ended {away:.2g} standard errors away from the optimum (train longer, "
            "or set train.optimizer: {use: lbfgs})"
        )
    blocks = inverse.reshape(outputs, size, outputs, size)
    std = np.stack(
        [np.sqrt(np.diag(back @ blocks[k, :, k] @ back.T) * variance) for k in range(outputs)]
    )
    return Errors(std, degrees)


def _dependent(gram: Float64) -> list[int]:
    """The columns that those before them determine, by the products of all columns [p, p]."""
    lengths = np.sqrt(np.diag(gram))
    left = gram / np.outer(lengths, lengths)  # of each column, what is beside the ones before it
    found = []
    for at in range(len(left)):
        pivot = left[at, at]
        if pivot < INDEPENDENT:
            found.append(at)
            continue
        row = left[at, at + 1 :].copy()
        left[at + 1 :, at + 1 :] -= np.outer(row, row) / pivot
    return found
