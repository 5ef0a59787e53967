"""A member in its stack: its model, its rows, and where it stands among the others."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ddlflow.models.label_scale import LabelScale
from ddlflow.spec.pipeline import Training
from ddlflow.sweep.fused import dropout
from ddlflow.sweep.member import resolved
from ddlflow.sweep.standing import Standing
from ddlflow.train.penalty import penalty_on


@dataclass(slots=True)
class Stacked:
    """A member in its stack."""

    standing: Standing
    net: nn.Module
    stream: tuple[int | None, int]  # fold and seed
    rows: int
    rates: tuple[float, ...]  # of its dropout layers
    best: Tensor | None = None  # its row at its best epoch


def learning(model: Stacked, label: LabelScale) -> Training:
    """A member's train section, with its penalties on what its net learns."""
    train = model.standing.member.train
    return train.model_copy(update={"penalty": penalty_on(label, train.penalty)})


def rates_of(net: nn.Module) -> tuple[float, ...]:
    return tuple(layer.p for layer in dropout.layers(net))


def place(model: Stacked) -> tuple[Any, ...]:
    """Where a member stands in its stack: streams with most rows first, a fold's side by side."""
    fold, seed = model.stream
    optimizer = resolved(model.standing.member.train.optimizer)
    alike = str(sorted((k, v) for k, v in optimizer.items() if k in {"betas", "eps"}))
    return -model.rows, -1 if fold is None else fold, seed, model.rates, alike
