"""A trained model as a function of Spark SQL.

The model's files travel inside the function, which Spark broadcasts by itself where it is larger
than 1 MiB, and sends over Spark Connect as well. So executors see neither the driver's disk nor
MLflow: ddlflow has to be installed there, and no more.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ddlflow.errors import InputError, SpecError
from ddlflow.infer.model import OUTPUTS, TrainedModel, load_model
from ddlflow.infer.shipped import ShippedModel, predict_columns
from ddlflow.runs.apply import AnyModel, place_of_model
from ddlflow.spec.given import Changes, Given

if TYPE_CHECKING:
    from pyspark.sql import Column


def predict_udf(
    model: AnyModel,
    *,
    column: str | None = None,
    on: Given = "local",
    set: Changes = (),
    trust_code: bool = False,
) -> "Callable[..., Column]":
    """Makes a model a function of columns, for DataFrames and, once registered, for SQL.

    ``df.withColumn("p", predict_udf(MODEL)(struct("*")))``; or
    ``spark.udf.register("predict", predict_udf(MODEL))`` and
    ``SELECT predict(struct(*)).probability FROM events``.

    Args:
        model: what ``ddlflow.run`` returned, a model's folder, or an MLflow model URI
            (``runs:/ID/model``, ``models:/NAME@ALIAS``).
        column: this column of the predictions alone; None: a struct of all, as ``ddlflow infer``
            writes them.
        on: the site, whose tracking store has the models of URIs.
        set: values on top of the site file.
        trust_code: run the Python code that the model brings, if it does.

    Returns:
        A function of Spark. It is called with one struct, whose fields it finds by their names
        (others do no harm), or with the model's columns in their order. The numbers are, bit for
        bit, those of ``ddlflow infer``; a row that is null has none. A Python worker loads the
        model once, and computes with one thread.

    Raises:
        SpecError: there is no such model or column, it brings code that is not trusted, or PySpark
            is not installed.
        TrackingError: the tracking store does not answer.
    """
    _of_pyspark()
    with place_of_model(model, on, set) as (place, is_trusted):
        loaded = load_model(place, trust_code=trust_code or is_trusted)
        shipped = ShippedModel.of(place)
    return function_of(shipped, loaded, column=column)


def function_of(
    shipped: ShippedModel,
    loaded: TrainedModel,
    *,
    column: str | None = None,
    with_outputs: bool = False,
) -> "Callable[..., Column]":
    """As `predict_udf`, of a model that was loaded and so can be trusted.

    Args:
        shipped: what travels.
        loaded: the same model here.
        column: see `predict_udf`.
        with_outputs: see `ddlflow.infer.shipped.predict_columns`.
    """
    arrow_udf, from_arrow_type = _of_pyspark()
    schema = loaded.output_schema
    if column is not None and column not in schema.names:
        raise SpecError(
            f"column is {column!r}; the columns of the predictions are {', '.join(schema.names)}."
        )

    def predict(*columns: pa.Array) -> pa.Array:
        try:
            model = shipped.on_worker()
            return predict_columns(model, columns, column, with_outputs=with_outputs)
        except InputError as error:  # the user's line, without the way to it
            raise error.with_traceback(None) from None

    if with_outputs:
        schema = schema.append(pa.field(OUTPUTS, pa.list_(pa.float32())))
    type_ = pa.struct(schema) if column is None else schema.field(column).type
    found: Callable[..., Column] = arrow_udf(predict, from_arrow_type(type_))
    return found


def _of_pyspark() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from pyspark.sql.pandas.functions import arrow_udf
        from pyspark.sql.pandas.types import from_arrow_type
    except ImportError as error:
        raise SpecError(
            f"predict_udf needs PySpark 4.1 or newer ({error}). Install it: "
            "pip install 'ddlflow[spark]'."
        ) from error
    return arrow_udf, from_arrow_type
