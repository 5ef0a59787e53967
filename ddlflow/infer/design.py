"""The rows of a linear model as a design matrix, and what they say about its coefficients.

The columns are a one, the standardised numeric features and a column of zeros and ones for each
code of each category. All of it is float64, and a shard at a time: what is kept of the rows are
sums of products of columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddlflow.data.shards.manifest import Shard
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.infer.model import TrainedModel, load_model
from ddlflow.models.linear import Linear

Float64 = npt.NDArray[np.float64]
PIECE_NUMBERS = 4_000_000  # of a design matrix in memory at once: 32 MB


@dataclass(frozen=True, slots=True)
class ShardToDescribe:
    """One shard to look at: small values that travel to a worker."""

    model: str
    dataset: str
    shard: Shard
    threads: int


@dataclass(slots=True)
class Information:
    """What some rows say about p coefficients of each of K outputs.

    Of several classes the first one is what the others are compared with: K is one less than they
    are, and the coefficients of an output lie one after the other.

    Attributes:
        rows: their number.
        gram: [p, p] products of the columns.
        gradient: [K * p] of the log likelihood; of a regression, columns times errors.
        curvature: [K * p, K * p], minus its second derivatives; of a regression, the gram matrix.
        squares: the sum of a regression's squared errors, as the net learns the label; of classes
            None.
    """

    rows: int
    gram: Float64
    gradient: Float64
    curvature: Float64
    squares: float | None

    def add(self, other: "Information") -> None:
        """The information of both, in place."""
        self.rows += other.rows
        self.gram += other.gram
        self.gradient += other.gradient
        self.curvature += other.curvature
        if self.squares is not None and other.squares is not None:
            self.squares += other.squares


def empty(model: TrainedModel) -> Information:
    """That of no rows, for a linear model."""
    columns = len(weights_of(model))
    size = columns * num_compared(model)
    squares = 0.0 if model.task.family == "gaussian" else None
    gram, curvature = np.zeros((columns, columns)), np.zeros((size, size))
    return Information(0, gram, np.zeros(size), curvature, squares)


def num_compared(model: TrainedModel) -> int:
    """The outputs that have coefficients of their own: of several classes all but the first."""
    return len(model.classes) - 1 if model.task.family == "categorical" else 1


def used_by(model: TrainedModel) -> npt.NDArray[np.bool_]:
    """Which columns [p] of the design matrix a linear model uses."""
    net, columns = model.predictor.net, model.columns
    assert isinstance(net, Linear)
    sizes = [category.size for category in columns.categories]
    if net.only is None:
        return np.ones(1 + len(columns.numeric) + sum(sizes), dtype=np.bool_)
    numbers, codes = net.only
    is_number = [k in numbers for k in range(len(columns.numeric))]
    is_code = np.repeat([k in codes for k in range(len(sizes))], sizes)
    return np.concatenate([[True], is_number, is_code]).astype(np.bool_)


def weights_of(model: TrainedModel) -> Float64:
    """A linear model's weights [p, outputs] by the columns of its design matrix; 0 if unused."""
    tensors = {name: t.double().numpy() for name, t in model.predictor.net.state_dict().items()}
    parts = [tensors["bias"][None, :], tensors["weight"].T]
    own = np.concatenate([*parts, *([tensors["one_hot"]] if "one_hot" in tensors else [])])
    used = used_by(model)
    weights = np.zeros((len(used), own.shape[1]))
    weights[used] = own
    return weights


def of_shard(task: ShardToDescribe) -> Information:
    """What one shard says, piece by piece."""
    torch.set_num_threads(task.threads)
    model = load_model(task.model, trust_code=True)  # it is this pipeline's own
    weights = weights_of(model)
    found = empty(model)
    (path,) = verified(task.dataset, [task.shard])
    columns = map_shard(path)
    rows = len(columns["label"])
    step = max(1, PIECE_NUMBERS // len(weights))
    for start in range(0, rows, step):
        part = {name: values[start : start + step] for name, values in columns.items()}
        design = design_of(model, part)
        outputs = design @ weights
        if model.task.family == "gaussian":
            labels = model.predictor.label.of_array64(part["label"])
            _add_squares(found, design, labels - outputs[:, 0])
        elif model.task.family == "bernoulli":
            likely = torch.from_numpy(outputs).sigmoid().numpy()
            _add_classes(found, design, likely, part["label"][:, None])
        else:
            one_hot = part["label"][:, None] == np.arange(1, weights.shape[1])
            likely = torch.from_numpy(outputs).softmax(1).numpy()
            _add_classes(found, design, likely[:, 1:], one_hot)
    return found


def design_of(model: TrainedModel, part: dict[str, npt.NDArray[Any]]) -> Float64:
    """The design matrix [n, p] of rows as a shard has them."""
    rows = len(part["label"])
    blocks = [np.ones((rows, 1))]
    if "features" in part:
        mean, scale = (
            getattr(model.predictor.standardise, name).double().numpy()
            for name in ("mean", "scale")
        )
        blocks.append(np.nan_to_num((part["features"] - mean) * scale, nan=0.0))
    for index, category in enumerate(model.columns.categories):
        codes = part["categories"][:, index, None]
        blocks.append((codes == np.arange(category.size)).astype(np.float64))
    return np.concatenate(blocks, axis=1)


def _add_squares(found: Information, design: Float64, errors: Float64) -> None:
    gram = design.T @ design
    found.add(Information(len(design), gram, design.T @ errors, gram, float(errors @ errors)))


def _add_classes(
    found: Information, design: Float64, likely: Float64, true: npt.NDArray[Any]
) -> None:
    """Adds rows with probabilities ``likely`` [n, K] and ``true`` [n, K] of zeros and ones."""
    columns, outputs = design.shape[1], likely.shape[1]
    curvature = np.empty((outputs, columns, outputs, columns))
    for k in range(outputs):
        for other in range(k, outputs):
            factor = likely[:, k] * ((k == other) - likely[:, other])
            block = design.T @ (factor[:, None] * design)
            curvature[k, :, other], curvature[other, :, k] = block, block
    size = columns * outputs
    found.add(
        Information(
            len(design),
            design.T @ design,
            ((true - likely).T @ design).reshape(size),
            curvature.reshape(size, size),
            None,
        )
    )
