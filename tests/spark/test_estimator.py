"""Trainings as stages of pyspark.ml, in the session of all Spark tests."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ddlflow.errors import SpecError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def rows(spark: "SparkSession", number: int = 600) -> "DataFrame":
    random = np.random.default_rng(4)
    x, y = random.standard_normal((2, number))
    label = (x - 0.5 * y + 0.3 * random.standard_normal(number) > 0).astype(float)
    values = zip(range(number), x.tolist(), y.tolist(), label.tolist(), strict=True)
    return spark.createDataFrame(list(values), "id long, x double, `a y` double, label double")


@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_in_a_pipeline_and_a_cross_validator(spark: "SparkSession", here: Path) -> None:
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from ddlflow.spark import Estimator, Model

    frame = rows(spark)
    assembler = VectorAssembler(inputCols=["x", "a y"], outputCol="features")
    estimator = Estimator(
        hidden=[8], epochs=1, batchRows=50, seed=5, keyCols=["id"], site="site.yaml"
    )
    grid = ParamGridBuilder().addGrid(estimator.lr, [0.05]).build()
    validator = CrossValidator(
        estimator=Pipeline(stages=[assembler, estimator]),
        estimatorParamMaps=grid,
        evaluator=BinaryClassificationEvaluator(),
        numFolds=2,
        seed=1,
    )
    found = validator.fit(frame)
    gc.collect()  # CrossValidator leaves its pool open
    assert found.avgMetrics[0] > 0.9
    model = found.bestModel.stages[1]
    assert isinstance(model, Model)
    assert model.trained.inputs == ["x", "a y"]
    assert model.metrics["auroc"] > 0.9
    assert [row["epoch"] for row in model.history] == [1]
    assert BinaryClassificationEvaluator().evaluate(found.transform(frame)) > 0.95
    _is_recorded(here, model, {"train.epochs": "1", "train.optimizer.lr": "0.05"})
    assert not [table for table in spark.catalog.listTables() if table.name.startswith("ddlflow")]


def _is_recorded(here: Path, model: Any, wanted: dict[str, str]) -> None:
    from mlflow.tracking import MlflowClient

    run = MlflowClient(f"sqlite:///{here}/mlflow.db").get_run(model.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= wanted.items()


def test_parameters_are_saved_and_are_settings(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddlflow.spark import Estimator
    from ddlflow.spark import estimator as module

    class ToldError(Exception):
        pass

    def run(pipeline: Any, **given: Any) -> None:
        raise ToldError(pipeline, given)

    monkeypatch.setattr(module, "run", run)
    settings = {"train.optimizer.use": "sgd", "train.epochs": 9}
    given = Estimator(
        inputCols=["x", "a y"], pipeline="mine", hidden=[4, 2], epochs=3, settings=settings
    ).setParams(workers=2, weightCol="id")
    given.write().overwrite().save(str(tmp_path / "saved"))
    read = Estimator.load(str(tmp_path / "saved"))
    assert read.uid == given.uid
    with pytest.raises(ToldError) as told:
        read.fit(rows(spark, 10), {read.labelCol: "id"})
    pipeline, more = told.value.args
    view = more["set"].pop("data.source")["spark"]
    assert pipeline == "mine"
    assert not spark.catalog.tableExists(view)
    assert more["spark"] is spark
    assert more["set"] == {
        "data.label": "id",
        "data.features": ["x", "a y"],
        "data.weight": "id",
        "model.hidden": [4, 2],
        "train.epochs": 9,  # settings come last
        "engine.workers": 2,
        "train.optimizer.use": "sgd",
    }


def test_what_is_wrong_is_said(spark: "SparkSession") -> None:
    from ddlflow.spark import Estimator

    with pytest.raises(SpecError, match="no column features, which the Estimator is to read"):
        Estimator().fit(rows(spark, 10))
    with pytest.raises(SpecError, match=r"Column x \(featuresCol\) is of type double"):
        Estimator(featuresCol="x").fit(rows(spark, 10))
    with pytest.raises(TypeError, match="expected a dict"):
        Estimator(settings=["train.epochs=3"])  # type: ignore[arg-type]
