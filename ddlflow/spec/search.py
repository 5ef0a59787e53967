"""The pipeline's search section: which settings are tried, and how many trainings that may cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

from ddlflow.spec.section import Section

Method = Literal["grid", "random", "tpe", "cma_es", "forward"]
KINDS = ("values", "uniform", "log_uniform", "int")
_SUCH = "a list of values, {uniform: [0, 0.5]}, {log_uniform: [1e-5, 0.1]} or {int: [1, 9]}"


class SearchRange(Section):
    """What one setting may be: listed values, or all numbers from `low` to `high`.

    In the file: ``[0.1, 0.2]``, ``{uniform: [0, 0.5]}``, ``{log_uniform: [1e-6, 1e-2]}``,
    ``{int: [128, 4096], log: true}``, and with a condition ``{values: [...], when: {name: value}}``
    (of any kind). It is written as it is read.

    Attributes:
        values: all that it may be, in the order of the file; none for a range of numbers.
        low: the least number.
        high: the greatest; both ends belong to the range.
        log: whether orders of magnitude are equally likely.
        whole: whether the numbers are whole.
        when: other settings, and the value or values of each with which this one is set at all.
    """

    values: list[Any] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    when: dict[str, Any] = {}

    @property
    def listed(self) -> Sequence[Any] | None:
        """Every value, where they can be counted."""
        if self.values is None and self.whole:
            return range(int(self.low), int(self.high) + 1)
        return self.values

    @property
    def ends(self) -> list[Any]:
        """The values, or the least and the greatest number."""
        if self.values is not None:
            return self.values
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, SearchRange):
            return given
        if isinstance(given, list):
            return {"values": _listed(given)}
        if not isinstance(given, dict):
            word = "empty" if given is None else repr(given)[:60]
            raise ValueError(f"it is {word}; expected {_SUCH}")
        kinds = [kind for kind in KINDS if kind in given]
        unknown = [str(key) for key in given if key not in {*KINDS, "log", "when"}]
        if len(kinds) != 1 or unknown:
            keys = ", ".join(map(str, given)) or "no keys"
            raise ValueError(f"it has {keys}; expected {_SUCH}, and perhaps when: {{name: value}}")
        (kind,) = kinds
        when, log = given.get("when", {}), given.get("log", False)
        if not isinstance(when, dict) or ("when" in given and not when):
            raise ValueError(f"when is {when!r:.60}; expected such as {{model.use: mlp}}")
        if not isinstance(log, bool) or ("log" in given and kind != "int"):
            instead = ". Write log_uniform instead" if kind == "uniform" else ""
            raise ValueError(f"log is {log!r:.60}; it is true or false, beside int{instead}")
        if kind == "values":
            return {"values": _listed(given[kind]), "when": when}
        low, high = _bounds(given[kind], kind, log=log or kind == "log_uniform")
        log = log or kind == "log_uniform"
        return {"low": low, "high": high, "log": log, "whole": kind == "int", "when": when}

    @model_serializer
    def _written(self) -> Any:
        if self.values is not None:
            return {"values": self.values, "when": self.when} if self.when else self.values
        kind = "int" if self.whole else "log_uniform" if self.log else "uniform"
        written: dict[str, Any] = {kind: self.ends}
        if self.whole and self.log:
            written["log"] = True
        return written | ({"when": self.when} if self.when else {})


def _listed(values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        word = "empty" if values in (None, []) else repr(values)[:60]
        raise ValueError(f"the list of values is {word}; give at least one value")
    for position, value in enumerate(values):
        if any(same(value, earlier) for earlier in values[:position]):
            raise ValueError(f"{value!r:.60} is listed twice. Remove one of them")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value!r} is listed; expected finite numbers")
    return values


def _bounds(given: Any, kind: str, *, log: bool) -> tuple[float, float]:
    """The two ends of a range."""
    numbers = int if kind == "int" else (int, float)
    pair = isinstance(given, list | tuple) and len(given) == 2
    if not pair or not all(isinstance(v, numbers) and not isinstance(v, bool) for v in given):
        what = "two whole numbers" if kind == "int" else "two numbers"
        raise ValueError(f"{kind} is {given!r:.60}; expected {what}, [least, greatest]")
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{kind} is {list(given)}; expected finite numbers")
    if kind == "int" and max(-low, high) > 2**53:  # beyond, a float64 has no odd numbers
        raise ValueError(f"int is {list(given)}; expected numbers up to 2^53")
    if low >= high:
        text = f"{kind} runs from {low:g} to {high:g}"
        if low > high:
            raise ValueError(f"{text}. Write the lower number first: [{high:g}, {low:g}]")
        raise ValueError(f"{text}, a single value. Write [{low:g}], or a greater upper end")
    if log and low <= 0:
        what = "int with log: true" if kind == "int" else kind
        above = "1" if kind == "int" else "1e-6"
        plain = "int without log" if kind == "int" else "uniform"
        raise ValueError(
            f"{what} begins at {low:g}, which has no logarithm. "
            f"Begin above 0, such as at {above}, or use {plain}"
        )
    return low, high


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are one: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def allowed(parent: SearchRange, wanted: Any) -> list[Any] | None:
    """The listed values of a setting that a condition names: one, or any of a list.

    None where the condition names what is not listed.
    """
    listed = parent.values or []
    for chosen in ([wanted], wanted if isinstance(wanted, list) else []):
        if chosen and all(any(same(one, value) for value in listed) for one in chosen):
            return list(chosen)
    return None


class Pruning(Section):
    """Trials that do badly after a few epochs are ended, so that the others get the time.

    halving and hyperband decide about all trials of a rung at once: the same trials end whatever
    the workers. async_halving decides about each as it arrives, so two searches may differ.
    """

    use: Literal["halving", "hyperband", "async_halving"]
    min_epochs: PositiveInt = 1  # the first decision comes after so many
    factor: Annotated[int, Field(ge=2)] = 3  # of so many trials one goes on


class Search(Section):
    """Trains with many settings and keeps the best."""

    # forward: its one setting is a list that grows from nothing, by that of its values which makes
    # the score best, until none does: {model.features: [a, b, c]}.
    method: Method
    space: dict[str, SearchRange]  # by dotted name, as in --set: train.optimizer.lr
    metric: str | None = None  # none: auroc, accuracy or loss, as the objective has it
    trials: PositiveInt | None = None  # settings tried; of a grid, all are
    time_s: PositiveFloat | None = None  # no trial is begun after so many seconds
    cv: bool = False  # each trial is scored over the folds of the cv section
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7  # NumPy's generators take 32 bits
    together: PositiveInt = 8  # tpe, cma_es: trials chosen at once, before any of them has a score
    pruning: Pruning | None = None

    @field_validator("space", mode="before")
    @classmethod
    def _some_space(cls, space: Any) -> Any:
        if space is None or space == {}:
            raise ValueError(
                "it is empty. Name at least one setting, such as train.optimizer.lr: [0.001, 0.01]"
            )
        return space

    @model_validator(mode="after")
    def _one_story(self) -> "Search":
        for wrong in (*self._of_method(), *_of_names(list(self.space)), *_conditions(self.space)):
            raise ValueError(wrong)
        return self

    def _of_method(self) -> Iterator[str]:
        ranges = [name for name, one in self.space.items() if one.listed is None]
        if self.method == "grid":
            if ranges:
                yield (
                    f"method grid tries every value, and {ranges[0]} is a range without end. "
                    "List its values, or set method: random and trials"
                )
            if self.trials is not None:
                yield (
                    f"method grid tries every point, and trials is {self.trials}. "
                    "Remove trials, or set method: random"
                )
        elif self.method == "forward":
            yield from self._of_forward()
        elif self.trials is None:
            yield f"method {self.method} needs trials. Set search.trials, such as 50"
        if self.method == "cma_es":
            listed = [name for name, one in self.space.items() if one.values or one.when]
            if listed:
                yield (
                    "method cma_es takes ranges of numbers without conditions, which "
                    f"{' and '.join(listed)} {'is' if len(listed) == 1 else 'are'} not. "
                    "Give ranges such as {uniform: [0, 0.5]}, or set method: tpe"
                )

    def _of_forward(self) -> Iterator[str]:
        one = next(iter(self.space.values()))
        if len(self.space) > 1 or one.values is None or one.when:
            yield (
                "method forward adds values to one setting, so space has that one with all of "
                "them, such as model.features: [a, b, c]. Correct space, or the method"
            )
        if self.pruning is not None:
            yield "method forward compares whole trainings. Remove pruning, or set another method"


def _of_names(names: Sequence[str]) -> Iterator[str]:
    for outer in names:
        for inner in names:
            if inner.startswith(f"{outer}."):
                yield f"space has {outer} and {inner}, which lies inside it. Remove one of them"


def _conditions(space: Mapping[str, SearchRange]) -> Iterator[str]:
    """What is wrong with the conditions: each has to stand on a listed setting before it."""
    names = list(space)
    for name, one in space.items():
        for parent, wanted in one.when.items():
            text = f"{name} is for when {parent} is {wanted!r:.60}"
            if parent not in space:
                yield (
                    f"{text}, but space does not vary {parent}. Add {parent} to space, or remove "
                    "the condition"
                )
            elif names.index(parent) >= names.index(name):
                yield f"{text}. Write {parent} before {name} in space"
            elif space[parent].values is None:
                yield f"{text}, but {parent} is a range. List its values, or remove the condition"
            elif allowed(space[parent], wanted) is None:
                listed = ", ".join(map(str, space[parent].values or []))
                yield f"{text}, but {parent} is one of {listed}. Correct one of them"


class Sweep(Section):
    """How trials and folds are trained; never what comes out beyond rounding."""

    # Trainings whose models have the same shape as one batched program: where it is measured to
    # be faster, wherever it can be, or not at all.
    fuse: Literal["auto", "always", "never"] = "auto"
