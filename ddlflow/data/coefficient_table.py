"""A linear model's coefficients, of the columns that it was trained on.

``ddlflow.infer.coefficients`` computes the table and ``ddlflow.report`` shows it. Neither may
import the other, so the contract stands in the room below both, beside the columns it is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """A row of the table.

    Attributes:
        name: of the feature, ``town=Rome`` of a category's level, or ``intercept``.
        of_class: of several classes, the one whose log odds it is about.
        coefficient: in the source's units.
        per_deviation: the coefficient for one standard deviation of a numeric feature instead of
            one unit, to compare features; of a level the coefficient; None of the intercept.
        std_error: None where it is not defined, as the next two.
        statistic: coefficient / std_error: t of a regression, z of classes.
        p_value: of the coefficient being 0.
    """

    name: str
    of_class: str | None
    coefficient: float
    per_deviation: float | None
    std_error: float | None = None
    statistic: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class CoefficientTable:
    """All terms, and what a reader of them has to know.

    Attributes:
        terms: the outputs one after the other, each with its intercept first.
        references: the level of each category that its other levels are compared with.
        reference_class: of several classes, the one that the others are compared with.
        undefined: a clause that says why there are no standard errors; None where there are.
        rows: that the model was trained on.
    """

    terms: Sequence[Term]
    references: Mapping[str, str]
    reference_class: str | None
    undefined: str | None
    rows: int
