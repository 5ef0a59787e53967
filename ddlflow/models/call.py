"""A model is called with the fields that its ``forward`` names."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ddlflow.errors import SpecError

Batch = Mapping[str, Tensor]  # field name -> [n, ...], n alike in all


def num_rows(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(next(iter(batch.values())))


@dataclass(frozen=True, slots=True)
class Call:
    """A model with the fields that it is called with.

    Attributes:
        net: the model.
        names: of the fields, in the order in which they are passed.
        by_name: whether they are passed as keyword arguments.
    """

    net: nn.Module
    names: tuple[str, ...]
    by_name: bool

    def __call__(self, batch: Batch) -> Any:
        """What the model gives for a batch, which may hold more fields than it asks for."""
        args, named = self.arguments(batch)
        return self.net(*args, **named)

    def arguments(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """What it is called with: by position, by name."""
        if self.by_name:
            return (), {name: batch[name] for name in self.names}
        return tuple([batch[name] for name in self.names]), {}


def call(net: nn.Module, inputs: Sequence[str]) -> Call:
    """How a model is called where the data has these input fields.

    Where every parameter that ``forward`` needs has the name of a field, it gets those fields that
    it names: ``forward(self, features, categories=None)`` gets the categories where there are any,
    and ``forward(self, **fields)`` gets all. Else it gets all fields by position, in the data set's
    order: ``forward(self, x)``.

    Args:
        net: the model.
        inputs: names of the input fields, in the data set's order.

    Raises:
        SpecError: neither is possible.
    """
    parameters = inspect.signature(net.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_names = len(named) + takes_all == len(parameters) and all(
        p.name in inputs or p.default is not p.empty for p in named
    )
    asked = tuple(inputs) if takes_all else tuple(p.name for p in named if p.name in inputs)
    if takes_names and asked:
        return Call(net, asked, by_name=True)
    _check_positions(type(net).__qualname__, parameters, inputs)
    return Call(net, tuple(inputs), by_name=False)


def _check_positions(
    name: str, parameters: Collection[inspect.Parameter], inputs: Sequence[str]
) -> None:
    """Whether all fields can be passed by position, each of a field's name at its own.

    Raises:
        SpecError: they cannot.
    """
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in by_position if p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    fits = len(needed) <= len(inputs) and (takes_any or len(inputs) <= len(by_position))
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    stands = all(
        p.name not in inputs or inputs.index(p.name) == k for k, p in enumerate(by_position)
    )
    if fits and stands and not keywords:
        return
    unknown = [p.name for p in (*needed, *keywords) if p.name not in inputs]
    needs = f"needs {', '.join(unknown)}" if unknown else "names none of the data's fields"
    raise SpecError(
        f"{name}.forward {needs}, and the fields of the data are {', '.join(inputs)}. Name there "
        "those that the model reads, and give other parameters a default."
    )
