"""The pipeline's cv section: how the training rows are dealt to folds."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ddlflow.spec.section import Section, Seed

FoldKind = Literal["auto", "plain", "stratified", "group", "time", "predefined"]
MAX_FOLDS = 1_000  # each piece of the source becomes a shard a fold: a slip must not fill a disk

_BY_COLUMN = ("group", "time", "predefined")


class Cv(Section):
    """Folds of the training rows. Validation and test rows of ``data.split`` stay as they are."""

    folds: Annotated[int, Field(ge=2, le=MAX_FOLDS)] | None = 5  # predefined: the column tells
    kind: FoldKind = "auto"  # auto: stratified where the label is a class, plain for a regression
    by: str | None = None  # the column of groups, of times, or of the folds' names
    repeats: PositiveInt = 1  # plain and stratified: so many times, each dealt anew
    # Time: rows this near before a fold's first time are not trained on. In the column's own unit
    # for numbers, in days for dates, in seconds for timestamps.
    gap: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] = 0
    window: PositiveInt | None = None  # time: train on the last so many blocks; none: on all
    predictions: bool = False  # write the out-of-fold predictions as Parquet
    seed: Seed = 7  # of plain and stratified folds

    @model_validator(mode="after")
    def _one_kind(self) -> "Cv":
        needed = {"group": "groups", "time": "times", "predefined": "folds' names"}.get(self.kind)
        if needed and self.by is None:
            raise ValueError(f"kind {self.kind} needs the column of the {needed}. Set cv.by")
        if self.by is not None and not needed:
            raise ValueError(
                f"by is for the kinds {', '.join(_BY_COLUMN)}, and kind is {self.kind}. "
                "Set cv.kind, or remove cv.by"
            )
        for name in ("gap", "window"):
            if getattr(self, name) and self.kind != "time":
                raise ValueError(
                    f"{name} is for kind time, and kind is {self.kind}. "
                    f"Set cv.kind: time, or remove cv.{name}"
                )
        if self.repeats > 1 and needed:
            raise ValueError(
                f"folds of kind {self.kind} are the same each time, so repeats has to be 1. "
                "Remove cv.repeats"
            )
        if self.kind == "predefined":
            if "folds" not in self.model_fields_set:
                self.__dict__["folds"] = None  # written out, the section stays valid
        elif self.folds is None:
            self.__dict__["folds"] = type(self).model_fields["folds"].default
        return self

    def kind_for(self, labels: str) -> FoldKind:
        """The kind that auto stands for; ``labels`` is how the label is read."""
        if self.kind != "auto":
            return self.kind
        return "plain" if labels == "regression" else "stratified"

    def of_repeat(self, repeat: int) -> "Cv":
        """The folds of one repeat, from 0: a data set of its own. The first has the seed as it is.

        Raises:
            IndexError: there is no such repeat.
        """
        if not 0 <= repeat < self.repeats:
            raise IndexError(f"repeat {repeat} of {self.repeats}")
        seed = self.seed
        if repeat:
            drawn = hashlib.sha256(f"{self.seed} {repeat}".encode()).digest()
            seed = int.from_bytes(drawn[:8], "little") >> 1  # below 2^63, as any seed
        return self.model_copy(update={"repeats": 1, "seed": seed})

    def fold_settings(self, labels: str) -> dict[str, Any]:
        """The settings that decide which row is in which fold, and no others."""
        kind = self.kind_for(labels)
        found: dict[str, Any] = {"kind": kind, "folds": self.folds}
        if kind in ("plain", "stratified"):
            return found | {"seed": self.seed}
        if kind == "time":
            found |= {"gap": self.gap, "window": self.window}
        return found | {"by": self.by}
