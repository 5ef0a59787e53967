"""The results of stages as JSON and back, and what of another version is refused."""

import json
import math
from dataclasses import asdict

import pytest

from ddlflow.errors import DdlflowError
from ddlflow.runs.result_json import from_json, to_json
from ddlflow.runs.results import (
    CrossValidationResult,
    FoldResult,
    PrepareResult,
    RunSummary,
    ScoreSpread,
    SearchSummary,
    StageTime,
    TrainAttempt,
    TrainResult,
)
from ddlflow.sweep.choose.table import TrialRow

PREPARED = PrepareResult(
    rows={"train": 10, "validation": 2, "test": 0},
    folds=3,
    digest="ab",
    features=2,
    categories=1,
    classes=("no", "yes"),
    dropped={"label": 1},
    replaced={},
    warnings=("a sentence",),
    location="t.parquet",
)
TRAINED = TrainResult(
    model_digest="cd",
    epochs=1,
    best_epoch=1,
    steps=4,
    rows=10,
    rows_mark=2**63 + 5,
    seconds=1.25,
    metrics={"auroc": 0.75, "rows": 2},
    history=({"epoch": 1, "loss": math.inf},),
    worlds=(1, 2),
    attempts=(TrainAttempt(1, 2, saved_step=3, ended_by="rank 0"), TrainAttempt(2, 1, 3)),
    ranks=(),
    model="/m",
    world=2,
    virtual_ranks=2,
    threads=1,
    device="cpu",
)
FOLD = FoldResult(0, 1, "done", "", 1, 1, 0.5, 3, ({"epoch": 1, "loss": None},), {"auroc": None})
FOLDS = CrossValidationResult((FOLD,), {"auroc": ScoreSpread(None, None, None)})
TRIAL = TrialRow(0, {"a": [1, 2]}, "done", 0.5, None, None, (0.5,), 1.0, None, 1, None, ((1, 0.5),))


@pytest.mark.parametrize("result", [PREPARED, TRAINED, FOLDS], ids=lambda r: type(r).__name__)
def test_a_result_comes_back_with_its_very_numbers(result: object) -> None:
    text = json.dumps(to_json(result))
    again = from_json(type(result), json.loads(text), "stage.json")
    assert again == result
    assert json.dumps(to_json(again)) == text  # 2 is not 2.0


def test_what_a_newer_version_wrote_is_refused_in_one_line() -> None:
    with pytest.raises(DdlflowError) as caught:
        from_json(PrepareResult, asdict(PREPARED) | {"hue": 1}, "kept/stage.json")
    assert str(caught.value) == (
        "kept/stage.json was written by another version of ddlflow (it holds hue). Use that "
        "version, or do the work again with --fresh."
    )
    lacking = {k: v for k, v in asdict(PREPARED).items() if k != "digest"}
    with pytest.raises(DdlflowError, match=r"another version of ddlflow \(digest: "):
        from_json(PrepareResult, lacking, "kept/stage.json")


def test_a_summary_has_keys_only_for_what_was_done() -> None:
    summary = RunSummary(
        run_id="1",
        stages=(StageTime("prepare", 0.5, False),),
        metrics={},
        baseline={},
        notes=(),
        rows_per_s=1.0,
        model_digest="ab",
        model_uri="u",
        model="m",
        predictions="p",
        report="r",
        tracking_uri="t",
        page="g",
        coefficients=None,
    )
    keys = [
        *("run_id", "stages", "metrics", "baseline", "notes", "rows_per_s", "model_digest"),
        *("model_uri", "model", "predictions", "report", "tracking_uri", "page", "coefficients"),
    ]
    assert list(to_json(summary)) == keys
    assert to_json(summary)["stages"] == [{"name": "prepare", "seconds": 0.5, "cached": False}]
    best = SearchSummary("auroc", "higher", 0.5, 0, {"a": [1, 2]}, {"done": 1}, (TRIAL,))
    values = {name: getattr(summary, name) for name in RunSummary.__slots__}
    searched = RunSummary(**{**values, "search": best, "cross_validation": FOLDS})
    found = to_json(searched)
    assert list(found) == [*keys, "search", "cross_validation"]
    assert list(found["cross_validation"]) == ["folds", "scores"]
    assert found["search"]["trials"][0]["curve"] == [[1, 0.5]]
