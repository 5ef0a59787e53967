"""Dropout of many models: the very numbers that each one's solo training draws.

A solo training seeds torch's generator by (seed, step) and its dropout layers draw in turn. So
models of one seed, one step and one tuple of rates have the same draws, whatever their fold: these
are made once and shared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlflow.sweep.fused.program import Noise
from ddlflow.train.seeding import seed_random


def layers(net: nn.Module) -> list[nn.Dropout]:
    """A model's dropout layers, in the order of their names."""
    return [part for part in net.modules() if type(part) is nn.Dropout]


def draw(
    calls: Sequence[tuple[int, tuple[int, ...]]],
    models: Sequence[tuple[int, int, tuple[float, ...]]],
    *,
    first: int,
    device: torch.device,
) -> list[Noise]:
    """The factors of dropout for one step, for runs of neighbouring models that share them.

    Args:
        calls: (layer, shape) of each draw in a forward pass, in order.
        models: each model's seed, step and rates of its layers.
        first: the number of the first of these models.
        device: whose generator is seeded and drawn from.

    Returns:
        Runs with their factors, one a call; None where the rate is 0, as torch draws nothing.
    """
    known: dict[tuple[int, int, tuple[float, ...]], list[Tensor | None]] = {}
    found: list[Noise] = []
    at = first
    for key, group in groupby(models):
        seed, step, rates = key
        stop = at + len(list(group))
        if any(rates):
            if key not in known:
                seed_random(device, seed, step, 0)
                known[key] = [_factors(shape, rates[layer], device) for layer, shape in calls]
            found.append((at, stop, known[key]))
        at = stop
    return found


def _factors(shape: tuple[int, ...], rate: float, device: torch.device) -> Tensor | None:
    if rate == 0:
        return None
    return F.dropout(torch.ones(shape, device=device), rate, training=True)


class Masked(nn.Module):
    """In the place of a dropout layer: multiplies by factors that were drawn before.

    Attributes:
        waiting: the factors of the calls to come, shared by all layers of a model.
    """

    def __init__(self, waiting: list[Tensor]) -> None:
        super().__init__()
        self.waiting = waiting

    def forward(self, values: Tensor) -> Tensor:
        return values * self.waiting.pop(0) if self.training else values


def mask(net: nn.Module) -> list[Tensor]:
    """Puts ``Masked`` in the place of each dropout layer; returns the list they wait for."""
    waiting: list[Tensor] = []
    for part in list(net.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Dropout:
                setattr(part, name, Masked(waiting))
    return waiting


@contextmanager
def recorded(net: nn.Module) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """While it is open, notes each call of a dropout layer: (layer, shape of its input)."""
    calls: list[tuple[int, tuple[int, ...]]] = []

    def hook_of(layer: int) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls.append((layer, tuple(args[0].shape)))

        return layers(net)[layer].register_forward_pre_hook(note)

    handles = [hook_of(layer) for layer in range(len(layers(net)))]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
