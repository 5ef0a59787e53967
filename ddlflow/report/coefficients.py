"""The coefficients of a linear model: a CSV file and a plot."""

import csv
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddlflow.data.coefficient_table import CoefficientTable
from ddlflow.report.style import CLASS_COLOURS, GREY, figure
from ddlflow.report.terms import strongest

COLUMNS = ("name", "coefficient", "std_error", "statistic", "p_value", "per_deviation")
DRAWN = 25  # features, the strongest
WIDE = 1.96  # standard errors to each side: 95 % of a normal distribution


def write_coefficients(path: Path, table: CoefficientTable) -> Path:
    """All terms as CSV, with every digit; what is not defined is empty."""
    columns = COLUMNS if table.reference_class is None else ("of_class", *COLUMNS)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        out.writerows(asdict(term) for term in table.terms)
    return path


def draw_coefficients(table: CoefficientTable) -> Figure:
    """The strongest features: what a deviation, or a level, does to the prediction."""
    terms = strongest(table.terms, DRAWN)
    names = list(dict.fromkeys(term.name for term in terms))
    classes = list(dict.fromkeys(term.of_class for term in table.terms))
    drawn = figure(7.2, 1.6 + 0.32 * max(1, len(names)))
    axes = drawn.subplots()
    axes.axvline(0, color=GREY, linewidth=1.2)
    for number, of_class in enumerate(classes):
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        shift = 0.6 * ((number + 0.5) / len(classes) - 0.5)
        for term in table.terms:
            value, error = term.per_deviation, 0.0
            if value is None or term.of_class != of_class or term.name not in names:
                continue
            if term.std_error is not None and term.coefficient:
                error = WIDE * abs(term.std_error * value / term.coefficient)
            at = names.index(term.name) + shift
            axes.errorbar(value, at, xerr=error or None, fmt="o", color=colour, capsize=2.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    errors = table.undefined is None
    axes.set(xlabel="per standard deviation, or level" + (", with 95 %" if errors else ""))
    if classes != [None]:
        handles = [
            Line2D([], [], color=CLASS_COLOURS[k % len(CLASS_COLOURS)], marker="o", linestyle="")
            for k in range(len(classes))
        ]
        axes.legend(handles, [str(name) for name in classes], title="class")
    return drawn
