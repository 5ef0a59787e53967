"""How a setting of a search lies on an axis: listed values side by side, numbers along a line."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from ddlflow.report.style import shown
from ddlflow.spec.search import SearchRange, same

MARGIN = 0.04  # of a line of numbers, at both ends
MOST_TICKS = 12


def cell(value: Any, longest: int = 60) -> str:
    """A setting's value as text: ``0.001``, ``mlp``, ``[200, 100]``; cut where it is long."""
    if isinstance(value, float):
        text = shown(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def two_lines(name: str) -> str:
    """A dotted name with its last part on a line of its own."""
    around, dot, last = name.rpartition(".")
    return f"{around}{dot}\n{last}" if dot else name


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a setting's values lie, from 0 to 1.

    Attributes:
        name: of the setting.
        listed: its values in the order of the axis; none for a range of numbers.
        low: the least number of a range; its logarithm, if it is logarithmic.
        high: the greatest, likewise.
        log: whether it is logarithmic.
        ticks: (position, text).
    """

    name: str
    listed: tuple[Any, ...] | None
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, values: Mapping[str, Any]) -> float | None:
        """The position of a trial; None where the setting was not set."""
        if self.name not in values:
            return None
        value = values[self.name]
        if self.listed is not None:
            place = next(k for k, one in enumerate(self.listed) if same(one, value))
            return (place + 0.5) / len(self.listed)
        part = ((math.log(value) if self.log else value) - self.low) / (self.high - self.low)
        return MARGIN + (1 - 2 * MARGIN) * part


def scale_of(name: str, one: SearchRange) -> Scale:
    """The scale of a setting; listed numbers rise, other values keep the order of the file."""
    if one.values is not None:
        listed = tuple(sorted(one.values) if all(map(_is_number, one.values)) else one.values)
        every = -(-len(listed) // MOST_TICKS)
        ticks = tuple(
            ((k + 0.5) / len(listed), cell(value, 16))
            for k, value in enumerate(listed)
            if k % every == 0
        )
        return Scale(name, listed, 0, 1, False, ticks)
    ends = (math.log(one.low), math.log(one.high)) if one.log else (one.low, one.high)
    bare = Scale(name, None, *ends, one.log, ())
    marks = _log_marks(one.low, one.high) if one.log else _marks(one)
    ticks = tuple((bare.at({name: mark}) or 0.0, cell(mark, 16)) for mark in marks)
    return Scale(name, None, *ends, one.log, ticks)


def varied(space: Mapping[str, SearchRange]) -> list[Scale]:
    """The scales of the settings that have more than one value, in the order of the file."""
    return [scale_of(name, one) for name, one in space.items() if len(one.ends) > 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _marks(one: SearchRange) -> list[float]:
    found = MaxNLocator(5, integer=one.whole).tick_values(one.low, one.high)
    return [float(mark) for mark in found if one.low <= mark <= one.high]


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten; of a short range 1, 2 and 5 times these."""
    for parts in ((1.0,), (1.0, 2.0, 5.0)):
        found: Sequence[float] = LogLocator(10, subs=parts, numticks=15).tick_values(low, high)
        marks = [float(mark) for mark in found if low <= mark * (1 + 1e-9) and mark <= high]
        if len(marks) >= 3:
            return marks
    inside = [mark for mark in marks if 1.2 * low < mark < high / 1.2]
    return [low, *inside, high] if len(marks) < 2 else marks
