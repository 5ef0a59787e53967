"""The files that an evaluate stage leaves beside its result, written and read in one place."""

import json

from ddlflow.data.coefficient_table import CoefficientTable
from ddlflow.data.scored import Scored
from ddlflow.runs.finished import Stage
from ddlflow.runs.result_json import from_json, to_json
from ddlflow.runs.results import EvaluateResult
from ddlflow.store import documents
from ddlflow.store.store import Store, open_store

SCORES = "scores.json"
COEFFICIENTS = "coefficients.json"  # of a linear model alone


def save_scores(folder: Store, scored: Scored) -> None:
    """Writes a model's scores and curves into the folder of its stage."""
    values = to_json(scored)
    curves = values["curves"]
    if "auroc_within" in curves and curves["auroc_within"] is None:
        del curves["auroc_within"]  # the file has it only where it is defined
    documents.save(folder, SCORES, values, indent=1)


def scores_of(evaluated: Stage[EvaluateResult]) -> Scored:
    """A model's scores and curves.

    Raises:
        DdlflowError: another version of ddlflow wrote them.
    """
    values = json.loads(open_store(evaluated.folder).read(SCORES))
    return from_json(Scored, values, f"{evaluated.folder}/{SCORES}")


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
