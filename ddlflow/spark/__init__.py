"""ddlflow inside the user's own Spark: a function for SQL and DataFrames, and stages of pyspark.ml.

    from ddlflow.spark import Estimator, predict_udf
    df.withColumn("p", predict_udf("models:/higgs@champion")(struct("*")))
    Pipeline(stages=[assembler, Estimator(hidden=[100], epochs=10)]).fit(df)

udf.py        predict_udf
columns.py    what the stages read and write
model.py      Model: a trained model as a stage
estimator.py  Estimator: trains one
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddlflow.spark.estimator import Estimator as Estimator
    from ddlflow.spark.model import Model as Model
    from ddlflow.spark.udf import predict_udf as predict_udf

__all__ = ["Estimator", "Model", "predict_udf"]
_MODULES = {"Estimator": "estimator", "Model": "model", "predict_udf": "udf"}


def __getattr__(name: str) -> object:
    """Imports a public name, and PySpark with it, when it is first used."""
    if name in _MODULES:
        module = import_module(f"ddlflow.spark.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
