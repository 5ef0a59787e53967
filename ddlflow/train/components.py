"""Fits a model's principal components to the rows that it is trained on.

The features are standardised, so these are the eigenvectors of their correlation matrix, of the
greatest eigenvalues. The matrix is added up in float64 piece by piece, in the order of the rows, by
every rank alike: the components do not depend on the world. Each points to where its greatest
weight is positive: an eigenvector has no sign of its own.
"""

import numpy as np
import torch
from torch import nn

from ddlflow.data.shards.rows import Rows
from ddlflow.models.pca import Projected

PIECE_ROWS = 8_192


def fit_components(net: nn.Module, rows: Rows) -> float | None:
    """Sets the components of a net that has any.

    Args:
        net: changed in place.
        rows: that it is trained on, standardised as they are read.

    Returns:
        The part of the features' variance that the components hold; None without components.
    """
    if not isinstance(net, Projected):
        return None
    size, kept = net.components.shape
    products, sums = np.zeros((size, size)), np.zeros(size)
    buffer = np.empty((min(PIECE_ROWS, rows.rows), size), np.float32)
    for start in range(0, rows.rows, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, rows.rows)
        rows.read(start, stop, {"features": buffer}, 0)
        piece = buffer[: stop - start].astype(np.float64)
        products += piece.T @ piece
        sums += piece.sum(0)
    mean = sums / rows.rows
    values, vectors = np.linalg.eigh(products / rows.rows - np.outer(mean, mean))
    values, vectors = values[::-1], vectors[:, ::-1][:, :kept]
    greatest = vectors[np.abs(vectors).argmax(0), np.arange(kept)]
    with torch.no_grad():
        net.components.copy_(torch.from_numpy(vectors * np.sign(greatest)))
    return float(values[:kept].sum() / values.sum()) if values.sum() > 0 else 1.0
