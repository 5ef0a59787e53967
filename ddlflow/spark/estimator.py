"""Trains a model on a DataFrame, as a stage of pyspark.ml."""

import json
import threading
from collections.abc import Mapping
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Estimator as SparkEstimator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasSeed, HasWeightCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ddlflow.api import run
from ddlflow.errors import SpecError
from ddlflow.infer.shipped import ShippedModel
from ddlflow.runs.apply import place_of_model
from ddlflow.runs.finished import STAGE_FILE
from ddlflow.spark.columns import HasColumns, quoted
from ddlflow.spark.model import Model
from ddlflow.store.store import open_store

# What is not in a pipeline that the user names.
_PIPELINE = {
    "name": "spark-estimator",
    "model": {"use": "mlp"},
    "train": {"objective": "binary", "optimizer": {"use": "adam"}},
}
# A parameter's name -> the setting of pipeline or site that it is.
_SETTINGS = {
    "objective": "train.objective",
    "hidden": "model.hidden",
    "epochs": "train.epochs",
    "batchRows": "train.batch_rows",
    "lr": "train.optimizer.lr",
    "seed": "train.seed",
    "validation": "data.split.validation",
    "weightCol": "data.weight",
    "workers": "engine.workers",
}
# Trainings of one process take turns: each has all workers.
_TURN = threading.Lock()


def _settings(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    raise TypeError(f"settings is {value!r}; expected a dict such as {{'train.epochs': 3}}")


class Estimator(
    SparkEstimator[Model],
    HasColumns,
    HasSeed,
    HasWeightCol,
    DefaultParamsReadable["Estimator"],
    DefaultParamsWritable,
):
    """Trains as ``ddlflow run`` does, in the DataFrame's own Spark session.

    What is not set is as in the pipeline: a file (``pipeline``), or an mlp with ddlflow's defaults.
    """

    pipeline: Param[str] = Param(
        Params._dummy(), "pipeline", "name or path of a pipeline", TypeConverters.toString
    )
    site: Param[str] = Param(
        Params._dummy(), "site", "name or path of a site", TypeConverters.toString
    )
    settings: Param[dict[str, Any]] = Param(
        Params._dummy(), "settings", "further settings by dotted name", _settings
    )
    objective: Param[str] = Param(
        Params._dummy(), "objective", "binary, multiclass or regression", TypeConverters.toString
    )
    hidden: Param[list[int]] = Param(
        Params._dummy(), "hidden", "sizes of the hidden layers", TypeConverters.toListInt
    )
    epochs: Param[int] = Param(Params._dummy(), "epochs", "epochs", TypeConverters.toInt)
    batchRows: Param[int] = Param(
        Params._dummy(), "batchRows", "rows of an optimizer step", TypeConverters.toInt
    )
    lr: Param[float] = Param(Params._dummy(), "lr", "learning rate", TypeConverters.toFloat)
    validation: Param[float] = Param(
        Params._dummy(), "validation", "share of rows held out", TypeConverters.toFloat
    )
    workers: Param[int] = Param(
        Params._dummy(), "workers", "workers that train", TypeConverters.toInt
    )
    keyCols: Param[list[str]] = Param(
        Params._dummy(), "keyCols", "columns that tell rows apart", TypeConverters.toListString
    )

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str = "features",
        inputCols: list[str] | None = None,
        labelCol: str = "label",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        weightCol: str | None = None,
        keyCols: list[str] | None = None,
        pipeline: str | None = None,
        site: str | None = None,
        settings: dict[str, Any] | None = None,
        objective: str | None = None,
        hidden: list[int] | None = None,
        epochs: int | None = None,
        batchRows: int | None = None,
        lr: float | None = None,
        seed: int | None = None,
        validation: float | None = None,
        workers: int | None = None,
    ) -> None:
        """Each argument is a parameter, for `setParams` and a ParamGridBuilder too."""
        super().__init__()
        self._setDefault(featuresCol="features", labelCol="label", predictionCol="prediction")
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")
        self._setDefault(site="local")
        given: dict[str, Any] = self._input_kwargs  # type: ignore[attr-defined] # of keyword_only
        self._set(**{name: value for name, value in given.items() if value is not None})

    def _fit(self, dataset: DataFrame) -> Model:
        frame, names = self._frame(dataset)
        session = dataset.sparkSession
        with _TURN:
            # The same rows have the same name, so that they are prepared once for many settings.
            view = f"ddlflow_{frame.semanticHash() & 0xFFFFFFFF:08x}"
            frame.createOrReplaceTempView(view)
            try:
                pipeline = self.getOrDefault(self.pipeline) if self.isSet(self.pipeline) else None
                summary = run(
                    pipeline or _PIPELINE,
                    on=self.getOrDefault(self.site),
                    set=self._changes(view, names, is_own=pipeline is None),
                    spark=session,
                )
            finally:
                session.catalog.dropTempView(view)
        model = Model()
        with place_of_model(summary) as (place, _):
            model.hold(ShippedModel.of(place), summary | {"history": _history(summary)})
        model.trust_code = True  # it is this very pipeline's
        return self._copyValues(model)

    def _frame(self, dataset: DataFrame) -> tuple[DataFrame, list[str]]:
        """The columns to learn from, a vector's numbers each by itself, and the features' names."""
        beside = [self.getLabelCol(), *self._named(self.keyCols), *self._named(self.weightCol)]
        for name in [*self.columns_read(), *beside]:
            if name not in dataset.columns:
                raise SpecError(
                    f"The DataFrame has no column {name}, which the Estimator is to read. Its "
                    f"columns are {', '.join(dataset.columns[:20])}."
                )
        if self.isSet(self.inputCols):
            columns = {name: F.col(quoted(name)) for name in self.getInputCols()}
        else:
            columns = _spread(dataset, self.getFeaturesCol(), beside)
        others = [F.col(quoted(name)) for name in dict.fromkeys(beside)]
        features = [column.alias(name) for name, column in columns.items()]
        return dataset.select(*features, *others), list(columns)

    def _named(self, param: Param[Any]) -> list[str]:
        value = self.getOrDefault(param) if self.isDefined(param) else []
        return [value] if isinstance(value, str) else list(value)

    def _changes(self, view: str, names: list[str], *, is_own: bool) -> dict[str, Any]:
        """What this stage says on top of the pipeline and the site."""
        source: dict[str, Any] = {"spark": view}
        if self.isSet(self.keyCols):
            source["key"] = self._named(self.keyCols)
        found: dict[str, Any] = {
            "data.source": source,
            "data.label": self.getLabelCol(),
            "data.features": names,
        }
        if is_own:
            found["data.split.test"] = 0.0  # whoever fits in Spark holds rows out in Spark
        for name, setting in _SETTINGS.items():
            if self.isSet(self.getParam(name)):
                found[setting] = self.getOrDefault(name)
        return found | (self.getOrDefault(self.settings) if self.isSet(self.settings) else {})


def _history(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row an epoch, as the stage beside the model's folder tells them."""
    stage = open_store(str(summary["model"]).rpartition("/")[0])
    return list(json.loads(stage.read(STAGE_FILE))["value"]["history"])


def _spread(dataset: DataFrame, name: str, taken: list[str]) -> dict[str, Column]:
    """A vector's numbers as columns, by the names that VectorAssembler noted where it did."""
    field = dataset.schema[name]
    if type(field.dataType).__name__ != "VectorUDT":
        raise SpecError(
            f"Column {name} (featuresCol) is of type {field.dataType.simpleString()}; expected "
            "vectors, as VectorAssembler makes them. Or name columns of any type in inputCols."
        )
    noted = field.metadata.get("ml_attr", {})
    told = [one for kind in noted.get("attrs", {}).values() for one in kind]
    size = noted.get("num_attrs", len(told))
    if not size:
        first = dataset.select(quoted(name)).dropna().first()
        if first is None:
            raise SpecError(f"Column {name} (featuresCol) has no vector to learn from.")
        size = len(first[0])
    names = [str(one.get("name", "")) for one in sorted(told, key=lambda one: int(one["idx"]))]
    if len({*names, *taken, ""}) != size + len({*taken}) + 1:
        names = [f"{name}_{k}" for k in range(size)]
    numbers = vector_to_array(F.col(quoted(name)))
    return {own: numbers[k] for k, own in enumerate(names)}
