"""Searches and cross-validations as a user starts them: whole commands, real Prefect and MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings(
    # Prefect and MLflow on each other's and their own doings; none is ours.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
    "ignore::ResourceWarning",
)
LR = "train.optimizer.lr"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small collider pipeline with folds and a search: one of its settings fails."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    pipeline = yaml.safe_load((ROOT / "pipelines/quickstart.yaml").read_text())
    pipeline["name"] = "small"
    pipeline["data"]["source"]["rows"] = 2_000
    pipeline["train"] |= {"epochs": 2, "batch_rows": 200}
    pipeline["cv"] = {"folds": 2, "predictions": True}
    pipeline["search"] = {"method": "grid", "cv": True, "space": {LR: [0.01, 1e38, 0.0001]}}
    (tmp_path / "pipelines/small.yaml").write_text(yaml.safe_dump(pipeline))
    site = yaml.safe_load((ROOT / "conf/local.yaml").read_text())
    site["engine"] = {"use": "local", "workers": 1}
    (tmp_path / "conf/local.yaml").write_text(yaml.safe_dump(site))
    return tmp_path


def ddlflow(project: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow", *arguments, "--json"],
        cwd=project,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def names(result: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(stage["name"], stage["cached"]) for stage in result["stages"]]


@pytest.mark.usefixtures("prefect_server")
def test_search_then_run_then_cross_validate(project: Path) -> None:
    first = ddlflow(project, "search", "small")
    assert names(first) == [("prepare", False), ("search", False)]
    assert "model_uri" not in first
    found = first["search"]
    trials = found["trials"]
    assert [row["values"] for row in trials] == [{LR: 0.01}, {LR: 1e38}, {LR: 0.0001}]
    assert [row["status"] for row in trials] == ["done", "failed", "done"]
    assert found["statuses"] == {"done": 2, "pruned": 0, "failed": 1}
    winner = max((trials[0], trials[2]), key=lambda row: row["score"])
    assert (found["best_trial"], found["best"]) == (winner["number"], winner["values"])
    assert (found["metric"], found["better"], found["score"]) == (
        "auroc",
        "higher",
        winner["score"],
    )

    # The same search is cached; its best setting trains the model. Each run has its own children.
    whole = ddlflow(project, "run", "small")
    assert names(whole) == [
        ("prepare", True),
        ("search", True),
        ("cross_validate", False),  # the best setting's out-of-fold predictions
        ("train", False),
        ("evaluate", False),
        ("infer", False),
    ]
    assert whole["search"] == found
    assert whole["run_id"] != first["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{project}/.ddlflow/mlflow.db")
    for result in (first, whole):
        run = run_of(client, result)
        assert run.info.status == "FINISHED"
        assert run.data.params[LR] == str(winner["values"][LR])
        assert run.data.metrics["search_auroc"] == winner["score"]
        assert run.data.tags["ddlflow.best_trial"] == str(winner["number"])
        assert run.data.tags["ddlflow.trials.failed"] == "1"
        kept = {file.path for file in client.list_artifacts(run.info.run_id, "search")}
        assert "search/trials.json" in kept
        assert len(kept) > 2
        check_children(client, run, trials)
    logged = yaml.safe_load(
        Path(run_of(client, whole).info.artifact_uri, "pipeline.yaml").read_text()
    )
    assert logged["train"]["optimizer"]["lr"] == winner["values"][LR]

    folds = ddlflow(project, "cross-validate", "small")
    assert names(folds) == [("prepare", True), ("cross_validate", False)]
    value = folds["cross_validation"]
    assert [fold["status"] for fold in value["folds"]] == ["done", "done"]
    predicted = [pq.read_table(p) for p in Path(value["predictions"]).glob("*.parquet")]
    assert len({row for table in predicted for row in table["row"].to_pylist()}) == 1_600
    metrics = run_of(client, folds).data.metrics
    assert metrics["cv_auroc"] == pytest.approx(value["scores"]["auroc"]["mean"])
    for what in ("std", "stderr"):
        assert metrics[f"cv_auroc_{what}"] == pytest.approx(value["scores"]["auroc"][what])
    for fold in value["folds"]:
        assert metrics[f"fold_{fold['fold']}/auroc"] == fold["metrics"]["auroc"]


def run_of(client: mlflow.MlflowClient, result: dict[str, Any]) -> Any:
    """By MLflow's id, or by ours where MLflow was slow to give its own."""
    (experiment,) = client.search_experiments(filter_string="name = 'ddlflow'")
    ours = f"tags.`ddlflow.run` = '{result['run_id']}'"
    found = client.search_runs([experiment.experiment_id], ours)
    return found[0] if found else client.get_run(result["run_id"])


def check_children(client: mlflow.MlflowClient, run: Any, trials: list[dict[str, Any]]) -> None:
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    children.sort(key=lambda child: int(child.data.tags["ddlflow.trial"]))
    assert [child.info.run_name for child in children] == ["trial 0", "trial 1", "trial 2"]
    assert [child.info.status for child in children] == ["FINISHED", "FAILED", "FINISHED"]
    for child, row in zip(children, trials, strict=True):
        assert child.data.tags["ddlflow.status"] == row["status"]
        assert child.data.params == {LR: str(row["values"][LR])}
        if row["status"] == "failed":
            assert child.data.tags["ddlflow.reason"] == row["reason"]
            assert "auroc" not in child.data.metrics
            continue
        assert child.data.metrics["auroc"] == row["score"]
        for fold, score in enumerate(row["scores"]):
            assert child.data.metrics[f"fold_{fold}/auroc"] == score
        history = client.get_metric_history(child.info.run_id, "val_auroc")
        assert [[one.step, one.value] for one in history] == row["curve"]
