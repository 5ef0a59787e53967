"""Principal components instead of features: a fixed linear map before a model."""

import torch
from torch import Tensor, nn

from ddlflow.errors import SpecError


class Projected(nn.Module):
    """A net that gets the principal components of the numeric features, and categories as they are.

    The map is no weight that is trained: it is fitted to the training rows before the first step
    (``ddlflow.train.components``), and is saved with the model.

    Args:
        net: for ``components`` numeric features.
        num_features: numeric columns.
        components: how many are kept.

    Raises:
        SpecError: there are fewer features.
    """

    def __init__(self, net: nn.Module, *, num_features: int, components: int) -> None:
        super().__init__()
        if components > num_features:
            raise SpecError(
                f"model.pca is {components}, and the data has {num_features} numeric features. "
                f"Set model.pca to {num_features} at most."
            )
        self.net = net
        empty = torch.zeros(num_features, components)
        self.components = nn.Parameter(empty, requires_grad=False)

    def forward(self, features: Tensor, categories: Tensor | None = None) -> Tensor:
        """As the net; features [n, num_features], standardised."""
        projected = features @ self.components
        outputs: Tensor = self.net(projected, categories)
        return outputs
