"""Made rows of a data set's tensors and sequences, to try a model on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddlflow.data.fields import LENGTH, Field

STEPS = 3  # of the longest made sequence


def has_features(num_features: int, tensors: Sequence[Field]) -> bool:
    """Whether a batch has ``features``: a table has them even where it has no number."""
    return num_features > 0 or not tensors


def made_tensors(
    tensors: Sequence[Field], rows: int, own: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Normal numbers, and sequences of one to ``STEPS`` steps, padded as in a batch.

    Args:
        tensors: the fields.
        rows: how many.
        own: what is drawn from.
        device: where they are wanted.
    """
    found: dict[str, Tensor] = {}
    for field in tensors:
        if not field.is_sequence:
            found[field.name] = torch.randn(rows, *field.shape, generator=own).to(device)
            continue
        lengths = STEPS - torch.arange(rows) % STEPS
        values = torch.randn(rows, STEPS, *field.shape, generator=own)
        for row, length in enumerate(lengths.tolist()):
            values[row, length:] = 0
        found[field.name], found[field.name + LENGTH] = values.to(device), lengths.to(device)
    return found
