"""A model as a function of Spark SQL: the numbers of `ddlflow infer`, in one session."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_models import Trained, fit, in_turn

from ddlflow.errors import DataError, SpecError
from ddlflow.infer.model import load_model
from ddlflow.infer.predict import infer
from ddlflow.spark import predict_udf
from ddlflow.spec.pipeline import Data

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


_VECTOR_TYPES = (pa.int8(), pa.int32(), pa.list_(pa.int32()), pa.list_(pa.float64()))


def inferred(one: Trained, to: Path) -> pa.Table:
    """What `ddlflow infer` says of the rows that a model was trained on."""
    infer(one.folder, "t.parquet", to, keys=["id"], data_root=one.root, threads=1, map_over=in_turn)
    return pq.read_table(to).sort_by("id")


def sorted_arrow(frame: Any) -> pa.Table:
    table = frame.toArrow().sort_by("id")
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))


@pytest.mark.parametrize("labels", ["binary", "multiclass", "regression"])
def test_the_numbers_are_those_of_infer_bit_for_bit(
    spark: "SparkSession",
    trained: Callable[..., Trained],
    tmp_path: Path,
    labels: str,
) -> None:
    one = trained(labels)
    predict = predict_udf(one.folder)
    wanted = inferred(one, tmp_path / "predictions")
    # Other partitions and batches than infer's ranges, whose rows end in batches of any size.
    frame = spark.read.parquet(str(one.root / "t.parquet")).repartition(7)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "17")
    try:
        found = frame.select("id", predict(_row()).alias("p")).select("id", "p.*")
        assert sorted_arrow(found).equals(wanted)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def _row() -> Any:
    from pyspark.sql.functions import struct

    return struct("*")


def test_in_sql_by_name_and_by_place_and_one_column_alone(
    spark: "SparkSession", trained: Callable[..., Trained], tmp_path: Path
) -> None:
    one = trained("binary")
    wanted = inferred(one, tmp_path / "predictions").column("probability")
    spark.read.parquet(str(one.root / "t.parquet")).createOrReplaceTempView("rows_to_predict")
    spark.udf.register("whole", predict_udf(one.folder))
    spark.udf.register("alone", predict_udf(one.folder, column="probability"))
    found = spark.sql(
        "SELECT id, whole(struct(*)).probability AS a, alone(a, b, town, year) AS b "
        "FROM rows_to_predict WHERE alone(struct(*)) >= 0"
    )
    table = sorted_arrow(found)
    assert table.column("a").equals(wanted)
    assert table.column("b").equals(wanted)
    assert dict(found.dtypes)["b"] == "float"


def test_null_rows_other_types_and_times(
    spark: "SparkSession", trained: Callable[..., Trained]
) -> None:
    """A row that is null has no prediction; one with null values has infer's."""
    one = trained("binary")
    spark.udf.register("predict", predict_udf(one.folder))
    found = spark.sql(
        "SELECT predict(CASE WHEN k > 1 THEN struct(a, b, town, year) END) AS p FROM VALUES "
        "(1, 1.5BD, 2, 'Rome', 2020S), (2, 1.5BD, 2, 'Rome', 2020S), (3, NULL, NULL, NULL, NULL) "
        "AS t(k, a, b, town, year)"
    ).toArrow()
    rows = pa.table({"a": [1.5, None], "b": [2.0, None], "town": ["Rome", None]}).append_column(
        "year", pa.array([2020, None], pa.int16())
    )
    wanted = load_model(one.folder).predict(rows.to_batches()[0]).to_struct_array()
    assert found.column("p").to_pylist() == [None, *wanted.to_pylist()]


def test_what_is_wrong_is_one_line(trained: Callable[..., Trained], tmp_path: Path) -> None:
    """As a worker says it: Spark would try each of these four times."""
    one = trained("binary")
    predict = predict_udf(one.folder)
    source = one.source.slice(0, 5)

    def of(table: pa.Table) -> pa.StructArray:
        return table.combine_chunks().to_batches()[0].to_struct_array()

    renamed = source.rename_columns(["id", "a", "b", "Town", "year", "y"])
    with pytest.raises(DataError, match=r"lack column town.*Did you mean 'Town'"):
        predict.func(of(renamed))
    with pytest.raises(DataError, match="Column a holds 'Bonn'"):
        predict.func(of(source.set_column(1, "a", source["town"])))
    twice = pa.table([*source.columns, source["b"]], names=[*source.column_names, "b"])
    with pytest.raises(DataError, match="more than one column b"):
        predict.func(of(twice))
    columns = of(source).flatten()
    with pytest.raises(
        DataError, match=r"reads 4 columns \(a, b, town, year\), and 2 columns were"
    ):
        predict.func(*columns[1:3])
    with pytest.raises(SpecError, match=r"column is 'score'; .* prediction, probability"):
        predict_udf(one.folder, column="score")
    with pytest.raises(SpecError, match="no model folder"):
        predict_udf(tmp_path / "nothing")


def test_a_worker_loads_a_model_once(
    spark: "SparkSession", trained: Callable[..., Trained]
) -> None:
    one = trained("regression", ["a"])
    predict = predict_udf(one.folder)
    frame = spark.range(0, 40, 1, 8).selectExpr("id", "id / 10D AS a")
    before = _looks(spark)
    for _ in range(3):
        frame.select(predict("a")).collect()
    after = _looks(spark)
    assert (
        1 <= sum(misses for misses, _ in after.values()) - sum(m for m, _ in before.values()) <= 2
    )
    assert sum(hits for _, hits in after.values()) > sum(hits for _, hits in before.values())


def _looks(spark: "SparkSession") -> dict[int, tuple[int, int]]:
    """By Python worker: how often it loaded a model, and how often it had it."""
    from pyspark.sql.functions import udf

    def look(_):  # type: ignore[no-untyped-def] # Spark reads annotations, and warns of these
        import os
        import time

        from ddlflow.infer import shipped

        time.sleep(0.05)  # so that all workers get one
        info = shipped._on_worker.cache_info()
        return f"{os.getpid()} {info.misses} {info.hits}"

    rows = spark.range(0, 4, 1, 4).select(udf(look)("id")).collect()
    found = [tuple(map(int, row[0].split())) for row in rows]
    return {pid: (misses, hits) for pid, misses, hits in found}


def test_vectors_dense_sparse_and_missing(spark: "SparkSession", tmp_path: Path) -> None:
    """A model of a tensor column takes what VectorAssembler makes."""
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql.types import LongType, StructField, StructType

    random = np.random.default_rng(3)
    values = random.standard_normal((300, 3)) * (random.random((300, 3)) < 0.6)
    label = (values.sum(axis=1) > 0).astype(np.int64)
    lists = pa.array(values.tolist(), pa.list_(pa.float64(), 3))
    source = pa.table({"id": np.arange(300), "v": lists, "y": label})
    pq.write_table(source, tmp_path / "t.parquet")
    one = fit(tmp_path, source, Data(source="t.parquet", label="y", exclude=["id"]), "binary", 2)
    wanted = inferred(one, tmp_path / "predictions").column("probability")

    plain = spark.createDataFrame(
        [(k, *map(float, row)) for k, row in enumerate(values)], ["id", "x", "y", "z"]
    )
    frame = VectorAssembler(inputCols=["x", "y", "z"], outputCol="v").transform(plain)
    kinds = {len(row.v.toArray()) - len(row.v.values) for row in frame.collect()}
    assert len(kinds) > 1, "no sparse vector among them"
    predict = predict_udf(one.folder, column="probability")
    for call in (predict("v"), predict(_row())):
        assert sorted_arrow(frame.select("id", call.alias("p"))).column("p").equals(wanted)
    type_ = StructType([StructField("id", LongType()), StructField("v", VectorUDT())])
    some = spark.createDataFrame([(0, None), (1, Vectors.dense(values[1])), (2, None)], type_)
    told = sorted_arrow(some.select("id", predict("v").alias("p"))).column("p")
    assert told.to_pylist() == [None, wanted[1].as_py(), None]
    assert pc.all(pc.is_valid(wanted)).as_py()


def test_a_vector_of_a_models_columns(
    spark: "SparkSession", trained: Callable[..., Trained], tmp_path: Path
) -> None:
    """What VectorAssembler made of them, in their order."""
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql.functions import expr

    one = trained("regression", ["a", "b"])
    wanted = inferred(one, tmp_path / "predictions").column("prediction")
    frame = spark.read.parquet(str(one.root / "t.parquet"))
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="features", handleInvalid="keep")
    frame = assembler.transform(frame)
    predict = predict_udf(one.folder, column="prediction")
    found = sorted_arrow(frame.select("id", predict("features").alias("p"))).column("p")
    assert found.equals(wanted)
    gone = frame.select("id", predict(expr("if(id = 0, null, features)")).alias("p"))
    assert sorted_arrow(gone).column("p")[:2].to_pylist() == [None, wanted[1].as_py()]
    type_ = pa.struct(zip(("type", "size", "indices", "values"), _VECTOR_TYPES, strict=True))
    longer = pa.array([{"type": 1, "values": [1.0, 2.0, 3.0]}], type_)
    with pytest.raises(DataError, match=r"vector holds 3 numbers.* 2 columns \(a, b\)"):
        predict.func(longer)


def test_pyspark_is_imported_when_it_is_used() -> None:
    import subprocess
    import sys

    code = (
        "import ddlflow.spark, sys; assert 'pyspark' not in sys.modules; ddlflow.spark.predict_udf"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
