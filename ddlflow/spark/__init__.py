"""ddlflow inside the user's own Spark: a function for SQL and DataFrames, and stages of pyspark.ml.

from ddlflow.spark import predict_udf
df.withColumn("p", predict_udf("models:/higgs@champion")(struct("*")))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddlflow.spark.udf import predict_udf as predict_udf

__all__ = ["predict_udf"]


def __getattr__(name: str) -> object:
    """Imports a public name, and PySpark with it, when it is first used."""
    if name == "predict_udf":
        from ddlflow.spark.udf import predict_udf

        return predict_udf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
