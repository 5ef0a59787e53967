"""Categories as vectors: one learned table a categorical column."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddlflow.errors import SpecError

WIDEST = 50  # no category column gets more numbers than this unless the pipeline says so


def embedding_width(size: int) -> int:
    """How many numbers stand for one category of a column with ``size`` codes.

    Half the codes, at most 50. Source: the rule of thumb of fast.ai's 2018 course (lesson 4,
    "half the cardinality, no more than 50"); the idea of such tables is Guo and Berkhahn,
    "Entity Embeddings of Categorical Variables", 2016.
    """
    return min(WIDEST, (size + 1) // 2)


class Embeddings(nn.Module):
    """The vectors of all categorical columns of a row, side by side.

    Args:
        sizes: the number of codes of each column, the bucket of unseen categories (code 0)
            included.
        width: numbers a category; None: ``embedding_width`` of each column.
        deviation: standard deviation of the normal start. Code 0 starts as the zero vector, so
            that a category never seen in training says nothing instead of something random.

    Attributes:
        width: numbers a row over all columns.
    """

    def __init__(self, sizes: Sequence[int], *, width: int | None, deviation: float) -> None:
        super().__init__()
        widths = [width or embedding_width(size) for size in sizes]
        self.width = sum(widths)
        self.tables = nn.ModuleList(
            nn.Embedding(size, one) for size, one in zip(sizes, widths, strict=True)
        )
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=deviation)
            with torch.no_grad():
                table.weight[0].zero_()

    def forward(self, features: Tensor, categories: Tensor | None) -> Tensor:
        """Float32 [n, F] and integers [n, C] to float32 [n, F + width]; [n, F] where C is 0."""
        if not self.tables:
            return features
        if categories is None:
            raise SpecError(missing_categories(len(self.tables)))
        columns = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        return torch.cat([features, *columns], dim=1)


def missing_categories(num_columns: int) -> str:
    """The message for a model with categorical columns that is called without their codes."""
    return (
        f"The model was called without categories but was built for {num_columns} categorical "
        "column(s). Give their codes as the second argument, integers [rows, columns]."
    )
