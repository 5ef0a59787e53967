"""The columns that the stages of pyspark.ml read and write, as its own stages name them."""

from typing import Any, Self

from pyspark.ml.functions import array_to_vector
from pyspark.ml.param.shared import (
    HasFeaturesCol,
    HasInputCols,
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
)
from pyspark.sql import Column
from pyspark.sql import functions as F

from ddlflow.infer.model import OUTPUTS, TrainedModel
from ddlflow.train.tasks.predictions import PREDICTION, PROBABILITY


class HasColumns(
    HasFeaturesCol,
    HasInputCols,
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
):
    """What is read: a column of vectors (featuresCol), or columns of any kind (inputCols)."""

    def setParams(self, **given: Any) -> Self:
        """Sets parameters by name."""
        self._set(**given)
        return self

    def columns_read(self) -> list[str]:
        """The columns that are read: one of vectors, or those that were named."""
        if self.isSet(self.inputCols):
            return list(self.getInputCols())
        return [self.getFeaturesCol()]


def written(of: HasColumns, predicted: Column, model: TrainedModel) -> dict[str, Column]:
    """By name, the columns that are added; of an empty name there is none, as everywhere in Spark.

    Args:
        of: names them.
        predicted: the struct that `ddlflow.infer.shipped.predict_columns` gives with outputs.
        model: that gives it.
    """
    prediction = predicted[PREDICTION]
    if not (model.classes and isinstance(model.classes[0], str)):
        prediction = prediction.cast("double")  # what evaluators compare with the label
    columns: dict[str, Column] = {}
    outputs = predicted[OUTPUTS]
    if model.task.family == "bernoulli":
        likely = predicted[PROBABILITY].cast("double")
        columns[of.getRawPredictionCol()] = _vector(F.array(-outputs[0], outputs[0]))
        columns[of.getProbabilityCol()] = _vector(F.array(1 - likely, likely))
    elif model.task.family == "categorical":
        of_class = [predicted[f"{PROBABILITY}_{name}"].cast("double") for name in model.classes]
        columns[of.getRawPredictionCol()] = _vector(outputs)
        columns[of.getProbabilityCol()] = _vector(F.array(*of_class))
    columns[of.getPredictionCol()] = prediction
    return {name: column for name, column in columns.items() if name}


def _vector(array: Column) -> Column:
    found: Any = array_to_vector(array.cast("array<double>"))
    return F.when(F.isnotnull(array[0]), found)


def quoted(name: str) -> str:
    """A column's name as Spark's expressions take any: dots and backticks mean nothing."""
    return "`" + name.replace("`", "``") + "`"
