"""A trained model as a stage of pyspark.ml."""

from typing import TYPE_CHECKING, Any

from pyspark.ml import Model as SparkModel
from pyspark.ml.util import (
    DefaultParamsReadable,
    DefaultParamsReader,
    DefaultParamsWriter,
    MLWritable,
    MLWriter,
)
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ddlflow.errors import SpecError
from ddlflow.infer.shipped import ShippedModel
from ddlflow.runs.apply import AnyModel, place_of_model
from ddlflow.spark.columns import HasColumns, quoted, written
from ddlflow.spark.udf import function_of
from ddlflow.spec.given import Changes, Given

if TYPE_CHECKING:
    from ddlflow.infer.model import TrainedModel

_FILES, _SUMMARY = "files", "summary"  # in a saved model's folder and in its metadata


class Model(SparkModel, HasColumns, MLWritable, DefaultParamsReadable["Model"]):
    """Adds predictions to a DataFrame; `Estimator.fit` gives it, or `Model.of` any trained model.

    It holds the model's files, and is saved with them: neither the storage nor MLflow is needed.

    Attributes:
        summary: what `ddlflow.run` told of the training; empty where there was none.
        trust_code: run the Python code that the model brings, if it does. A saved model comes back
            without it.
    """

    def __init__(self) -> None:
        """Make one without a trained model, as Spark does before it reads one; see `of`."""
        super().__init__()
        self._setDefault(featuresCol="features", labelCol="label", predictionCol="prediction")
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")
        self._shipped: ShippedModel | None = None
        self.summary: dict[str, Any] = {}
        self.trust_code = False

    @classmethod
    def of(
        cls, model: AnyModel, *, on: Given = "local", set: Changes = (), trust_code: bool = False
    ) -> "Model":
        """A model that was trained before; see `ddlflow.spark.predict_udf`."""
        with place_of_model(model, on, set) as (place, is_trusted):
            found = cls()
            found.hold(ShippedModel.of(place), {})
        found.trust_code = trust_code or is_trusted
        found._set(inputCols=found.trained.inputs)
        return found

    def hold(self, shipped: ShippedModel, summary: dict[str, Any]) -> None:
        """Takes a trained model, with what was told of its training."""
        self._shipped, self.summary = shipped, summary

    @property
    def shipped(self) -> ShippedModel:
        """The model's files."""
        if self._shipped is None:
            raise SpecError("This Model holds no trained model. Use Model.load or Model.of.")
        return self._shipped

    @property
    def trained(self) -> "TrainedModel":
        """The model in this process, for `predict_frame` and its columns and classes."""
        return self.shipped.load(trust_code=self.trust_code)

    @property
    def run_id(self) -> str:
        """MLflow's run of the training; empty where the model came without one."""
        return str(self.summary.get("run_id", ""))

    @property
    def metrics(self) -> dict[str, float]:
        """Of the model on the rows that were held out."""
        return dict(self.summary.get("metrics", {}))

    @property
    def history(self) -> list[dict[str, float]]:
        """A row an epoch of the training."""
        return list(self.summary.get("history", []))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names, trained = self.columns_read(), self.trained
        for name in names:
            if name not in dataset.columns:
                raise SpecError(
                    f"The DataFrame has no column {name}, which the model reads. Its columns are "
                    f"{', '.join(dataset.columns[:20])}."
                )
        predict = function_of(self.shipped, trained, with_outputs=True)
        columns = [F.col(quoted(name)) for name in names]
        row = F.struct(*columns) if self.isSet(self.inputCols) else columns[0]
        whole = f"{self.uid}-predicted"  # computed once, whatever is made of it
        found = dataset.withColumn(whole, predict(row))
        return found.withColumns(written(self, found[quoted(whole)], trained)).drop(whole)

    def write(self) -> MLWriter:
        """Writes parameters and summary as JSON, and the model's files as they are."""
        return ModelWriter(self)

    @classmethod
    def read(cls) -> "ModelReader":
        """Reads what `write` wrote; code that the model brings is not trusted."""
        return ModelReader(cls)


class ModelWriter(MLWriter):
    """Writes a folder: ``metadata`` as all stages do, and ``files``, a table of names and bytes."""

    def __init__(self, instance: Model) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        """Writes to a new folder, wherever Spark writes to."""
        of, session = self._instance, self.sparkSession
        more = {_SUMMARY: of.summary, "identity": of.shipped.identity}
        DefaultParamsWriter.saveMetadata(of, path, session, more)
        files = session.createDataFrame(list(of.shipped.files), "name string, content binary")
        files.coalesce(1).write.parquet(f"{path}/{_FILES}")


class ModelReader(DefaultParamsReader[Model]):
    """Reads what `ModelWriter` wrote."""

    def load(self, path: str) -> Model:
        """The model of a folder."""
        told = self.loadMetadata(path, self.sparkSession)
        found = super().load(path)
        rows = self.sparkSession.read.parquet(f"{path}/{_FILES}").collect()
        files = tuple(sorted((row.name, bytes(row.content)) for row in rows))
        found.hold(ShippedModel(told["identity"], files), told[_SUMMARY])
        return found
