"""A linear or logistic regression."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlflow.errors import SpecError
from ddlflow.models.categories import Embeddings, missing_categories


class Linear(nn.Module):
    """One affine map of the features and the categories.

    The map starts at zero: the loss is convex in it, so a random start would only add noise.

    Args:
        num_features: columns of ``features``; 0 where all columns are categories.
        category_sizes: codes of each categorical column, the bucket of unseen ones included.
        num_outputs: 1 for binary and regression, else the number of classes.
        embedding: None: categories are one-hot, so each code has a weight an output; else they
            are vectors of this width, learned together with the map.
        only: the numeric and the categorical columns that are used, by position; None: all.
    """

    numbers: Tensor
    codes: Tensor

    def __init__(
        self,
        *,
        num_features: int,
        category_sizes: Sequence[int],
        num_outputs: int,
        embedding: int | None = None,
        only: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.only = only
        if only is not None:
            num_features, category_sizes = len(only[0]), [category_sizes[k] for k in only[1]]
            for name, positions in zip(("numbers", "codes"), only, strict=True):
                chosen = torch.tensor(positions, dtype=torch.int64)
                self.register_buffer(name, chosen, persistent=False)
        one_hot_sizes = list(category_sizes) if embedding is None else []
        # The map starts at zero, so the vectors must not: else neither would ever move. Their
        # size is that of a standardised feature.
        self.embeddings = Embeddings(
            [] if embedding is None else category_sizes, width=embedding, deviation=1.0
        )
        num_inputs = num_features + self.embeddings.width
        self.weight = nn.Parameter(torch.zeros(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        # A one-hot row times a weight matrix is a row of that matrix: all columns' matrices lie
        # in one table, and `starts` says where each column's begins.
        self.one_hot = (
            nn.Parameter(torch.zeros(sum(one_hot_sizes), num_outputs)) if one_hot_sizes else None
        )
        self.starts: Tensor
        starts = torch.tensor([0, *accumulate(one_hot_sizes)][:-1], dtype=torch.int64)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, features: Tensor, categories: Tensor | None = None) -> Tensor:
        """Outputs (logits or predictions) of n rows.

        Args:
            features: float32 [n, num_features], standardised.
            categories: int32 or int64 [n, C]; not given where there are none.

        Returns:
            float32 [n] with one output, else [n, num_outputs].
        """
        if self.only is not None:
            features = features[:, self.numbers]
            categories = None if categories is None else categories[:, self.codes]
        outputs = F.linear(self.embeddings(features, categories), self.weight, self.bias)
        if self.one_hot is not None:
            if categories is None:
                raise SpecError(missing_categories(len(self.starts)))
            outputs = outputs + F.embedding(categories + self.starts, self.one_hot).sum(dim=1)
        return outputs.squeeze(1) if outputs.shape[1] == 1 else outputs
