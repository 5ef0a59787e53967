"""A multilayer perceptron."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlflow.models.categories import Embeddings

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]
Start = Literal["xavier", "he"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


class BatchNorm(nn.Module):
    """Batch normalisation that also trains on a slice of one row.

    One row has no variance, and torch refuses it; but the last global batch of an epoch may leave
    a virtual rank one row. That row is normalised by the running statistics, and these stay.

    Else it is ``nn.BatchNorm1d`` without its count of batches, which nothing reads: so every
    buffer is a floating-point average, which virtual ranks can average in turn.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, rows: Tensor) -> Tensor:
        """Float32 [n, F] to float32 [n, F], n at least 1."""
        by_batch = self.training and rows.shape[0] > 1
        return F.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias, training=by_batch
        )


def start_weights(layer: nn.Linear, start: Start, activation: Activation | None) -> None:
    """Draw a layer's first weights from torch's default generator; biases become zero.

    Args:
        layer: changed in place.
        start: "xavier": uniform, variance 2 / (inputs + outputs) (Glorot and Bengio, 2010);
            "he": normal, variance 1 / inputs (He et al., 2015). Each times the squared gain of
            the activation that follows, ``torch.nn.init.calculate_gain``: 2 for relu, 25/9 for
            tanh, 1 for sigmoid and for no activation. gelu, which torch does not list, takes
            relu's, whose shape it follows.
        activation: what follows the layer; None for the last one.
    """
    shape = "linear" if activation is None else "relu" if activation == "gelu" else activation
    if start == "xavier":
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain(shape))
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity=shape)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Mlp(nn.Module):
    """Hidden layers of affine map, batch norm (if asked), activation, dropout; then an affine map.

    The first weights depend on nothing but torch's default generator.

    Args:
        num_features: columns of ``features``; 0 where all columns are categories.
        category_sizes: codes of each categorical column, the bucket of unseen ones included.
        num_outputs: 1 for binary and regression, else the number of classes.
        hidden: the width of each hidden layer.
        activation: what bends each hidden layer.
        dropout: the fraction of each hidden layer that is left out in training.
        batch_norm: normalise before each activation; the map before it then needs no bias.
        start: how the first weights are drawn, see ``start_weights``.
        embedding: numbers a category; None: by its number of codes, see ``embedding_width``.
    """

    def __init__(
        self,
        *,
        num_features: int,
        category_sizes: Sequence[int],
        num_outputs: int,
        hidden: Sequence[int] = (100,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        start: Start = "he",
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        # 0.01 is small beside a standardised feature: a rare category starts out neutral.
        # Source: fastai's `Embedding` layer, a normal cut at two deviations of 0.01.
        self.embeddings = Embeddings(category_sizes, width=embedding, deviation=0.01)
        width = num_features + self.embeddings.width
        layers: list[nn.Module] = []
        for num_units in hidden:
            affine = nn.Linear(width, num_units, bias=not batch_norm)
            start_weights(affine, start, activation)
            layers.append(affine)
            if batch_norm:
                layers.append(BatchNorm(num_units))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = num_units
        last = nn.Linear(width, num_outputs)
        start_weights(last, start, None)
        self.layers = nn.Sequential(*layers, last)

    @property
    def last(self) -> nn.Linear:
        """The affine map that gives the outputs."""
        found = self.layers[-1]
        assert isinstance(found, nn.Linear)
        return found

    def forward(self, features: Tensor, categories: Tensor | None = None) -> Tensor:
        """Outputs (logits or predictions) of n rows.

        Args:
            features: float32 [n, num_features], standardised.
            categories: int32 or int64 [n, C]; not given where there are none.

        Returns:
            float32 [n] with one output, else [n, num_outputs].
        """
        outputs: Tensor = self.layers(self.embeddings(features, categories))
        return outputs.squeeze(1) if outputs.shape[1] == 1 else outputs
