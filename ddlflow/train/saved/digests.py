"""One number for a model: equal digests mean equal weights, bit for bit."""

import hashlib
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of the parameters' bytes, names sorted, little-endian, contiguous.

    Names, shapes and dtypes order the bytes but do not enter: the digest compares trainings of
    one model, not models.

    Args:
        model: a module, of which the parameters are read (a tied one once, buffers not), or
            tensors by name, of which all are. On any device, of any dtype and strides.

    Returns:
        64 hexadecimal digits.
    """
    tensors = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(_bytes(tensors[name]))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers in row-major order; no copy where they lie so in main memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()  # numpy has no bfloat16, so no dtype but this
    if sys.byteorder == "big":
        raw = raw.reshape(-1, flat.element_size())[:, ::-1].copy()
    return raw.data
