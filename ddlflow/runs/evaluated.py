"""The files that an evaluate stage leaves beside its result, written and read in one place."""

from ddlflow.data.coefficient_table import CoefficientTable
from ddlflow.runs.finished import Stage
from ddlflow.runs.result_json import from_json, to_json
from ddlflow.runs.results import EvaluateResult
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store

COEFFICIENTS = "coefficients.json"  # of a linear model alone


def save_coefficients(folder: Store, table: CoefficientTable) -> None:
    """Writes a linear model's table into the folder of its stage."""
    documents.save(folder, COEFFICIENTS, to_json(table), indent=1)


def coefficients_of(evaluated: Stage[EvaluateResult]) -> CoefficientTable | None:
    """A linear model's table; None of any other model.

    Raises:
        DdlflowError: another version of ddlflow wrote it.
    """
    values = documents.load(open_store(evaluated.folder), COEFFICIENTS)
    if values is None:
        return None
    return from_json(CoefficientTable, values, f"{evaluated.folder}/{COEFFICIENTS}")
