"""Tensors for a model of numbers: flattened, beside the features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddlflow.data.fields import Field
from ddlflow.errors import SpecError


class Flattened(nn.Module):
    """A net that gets features and tensors' numbers in one matrix, and categories as they are.

    Args:
        net: for so many features as both are together.
        inputs: names of all input fields, in the data set's order.
        tensors: names of those that are flattened; they come after the features, in this order.
    """

    def __init__(self, net: nn.Module, *, inputs: Sequence[str], tensors: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self._inputs = tuple(inputs)
        self._tensors = tuple(tensors)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the net; the fields by position."""
        given = dict(zip(self._inputs, inputs, strict=True))
        parts = [given[name].flatten(1) for name in self._tensors]
        if "features" in given:
            parts.insert(0, given["features"])
        if not parts:  # a linear model of categories alone
            parts = [given["categories"].new_zeros(len(given["categories"]), 0, dtype=torch.float)]
        features = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        outputs: Tensor = self.net(features, given.get("categories"))
        return outputs


def check_flat(use: str, tensors: Sequence[Field]) -> None:
    """A built-in model takes tensors of one shape alone.

    Raises:
        SpecError: there are sequences among them.
    """
    for field in tensors:
        if field.is_sequence:
            number = "FLOAT" if field.dtype == "float32" else "DOUBLE"
            step = "".join(f"[{size}]" for size in reversed(field.shape))
            raise SpecError(
                f"model {use} takes no sequences, and {field.shown} is one. Name a model of your "
                f"own whose forward has the parameters {field.name} and {field.name}_length, or "
                "list the column in data.exclude. Lists of one length (here 3) become a tensor by "
                f'data.derive: {{w: "{field.name}::{number}{step}[3]"}} with data.exclude: '
                f"[{field.name}]."
            )
