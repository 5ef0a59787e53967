"""A trained model as a stage of pyspark.ml."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small_models import Trained

from ddlflow.errors import SpecError
from ddlflow.infer.model import load_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_the_columns_are_what_evaluators_of_spark_take(
    spark: "SparkSession", trained: Callable[..., Trained], labels: str
) -> None:
    from pyspark.ml.evaluation import (
        BinaryClassificationEvaluator,
        MulticlassClassificationEvaluator,
        RegressionEvaluator,
    )
    from pyspark.sql import functions as F

    from ddlflow.spark import Model

    one = trained(labels)
    model = Model.of(one.folder)
    frame = spark.read.parquet(str(one.root / "t.parquet"))
    found = model.transform(frame).sort("id")
    table = found.toPandas()
    (batch,) = one.source.combine_chunks().to_batches()
    wanted = load_model(one.folder).predict(batch)
    assert table["prediction"].tolist() == wanted.column("prediction").to_pylist()
    if labels == "regression":
        assert list(table.columns) == [*frame.columns, "prediction"]
        rmse = RegressionEvaluator(labelCol="y", metricName="rmse").evaluate(found)
        assert rmse == pytest.approx(np.sqrt(np.mean((table["y"] - table["prediction"]) ** 2)))
        return
    likely = np.stack([vector.toArray() for vector in table["probability"]])
    raw = np.stack([vector.toArray() for vector in table["rawPrediction"]])
    names = [name for name in wanted.schema.names if name.startswith("probability")]
    own = np.stack([wanted.column(name).to_numpy() for name in names], axis=1)
    assert np.array_equal(likely[:, 1:] if labels == "binary" else likely, own)
    assert likely.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (raw.argmax(axis=1) == likely.argmax(axis=1)).all()
    if labels == "binary":  # its classes are texts
        found = found.withColumn("is_yes", (F.col("y") == "yes").cast("double"))
        evaluator = BinaryClassificationEvaluator(labelCol="is_yes")
        from sklearn.metrics import roc_auc_score

        assert evaluator.evaluate(found) == pytest.approx(
            roc_auc_score(table["y"] == "yes", raw[:, 1])
        )
    else:
        evaluator = MulticlassClassificationEvaluator(labelCol="y", metricName="accuracy")
        assert evaluator.evaluate(found) == pytest.approx(
            (table["prediction"] == table["y"]).mean()
        )


def test_it_is_saved_and_read_in_a_pipeline(
    spark: "SparkSession", trained: Callable[..., Trained], tmp_path: Path
) -> None:
    from pyspark.ml import PipelineModel
    from pyspark.ml.feature import VectorAssembler

    from ddlflow.spark import Model

    one = trained("regression", ["a", "b"])
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="v", handleInvalid="keep")
    model = Model.of(one.folder)
    model.clear(model.inputCols)
    model.setParams(featuresCol="v", predictionCol="p")
    model.summary = {"run_id": "abc", "metrics": {"rmse": 1.5}, "history": [{"epoch": 1}]}
    frame = spark.read.parquet(str(one.root / "t.parquet"))
    whole = PipelineModel([assembler, model])
    wanted = [row.p for row in whole.transform(frame).sort("id").select("p").collect()]
    whole.write().overwrite().save(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob("*.pkl"))
    read = PipelineModel.load(str(tmp_path / "saved"))
    stage = read.stages[1]
    assert isinstance(stage, Model)
    assert (stage.uid, stage.run_id, stage.metrics) == (model.uid, "abc", {"rmse": 1.5})
    assert stage.history == [{"epoch": 1}]
    assert not stage.trust_code
    found = read.transform(frame).sort("id").select("p").collect()
    assert [row.p for row in found] == wanted
    again = stage.copy({stage.predictionCol: "q"})
    assert again.transform(read.stages[0].transform(frame)).columns[-1] == "q"
    assert stage.getPredictionCol() == "p"


def test_what_is_missing_is_said_before_a_job_starts(
    spark: "SparkSession", trained: Callable[..., Trained]
) -> None:
    from ddlflow.spark import Model

    with pytest.raises(SpecError, match="holds no trained model"):
        Model().transform(spark.range(3))
    with pytest.raises(SpecError, match="no column a, which the model reads"):
        Model.of(trained("regression", ["a"]).folder).transform(spark.range(3))
