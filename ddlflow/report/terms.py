"""What a reader of a linear model's coefficients looks at first; no plot is drawn here.

Apart from ``ddlflow.report.coefficients``, which draws: the last screen of a run whose stages all
stand shows these terms, and has no third of a second for Matplotlib.
"""

from collections.abc import Sequence

from ddlflow.data.coefficient_table import CoefficientTable, Term


def strongest(terms: Sequence[Term], most: int) -> list[Term]:
    """The terms of the features that move the prediction most, by a deviation or level of each."""
    moves = [(abs(term.per_deviation), term) for term in terms if term.per_deviation is not None]
    return [term for _, term in sorted(moves, key=lambda move: -move[0])[:most]]


def notes_of(table: CoefficientTable) -> list[str]:
    """What a reader of the table has to know: full sentences."""
    found = []
    if table.reference_class is not None:
        found.append(f"Log odds of each class against {table.reference_class}.")
    if table.references:
        levels = ", ".join(f"{name}={level}" for name, level in table.references.items())
        found.append(f"Levels of categories are compared with {levels}.")
    if table.undefined is not None:
        found.append(f"Standard errors and p-values are not defined: {table.undefined}.")
    return found
