"""predict_udf against Spark's own predict_batch_udf with a hand-written PyTorch model.

Both read the same 28 columns of the same Parquet files, both with one thread a worker, and take
turns; the sum over the probabilities is what is computed from them. The hand-written model holds
the same weights and its standardisation in two tensors, and gets its numbers in both ways that
Spark has: 28 columns, and one array. Ours also looks at each value for what is missing or infinite;
it gives the probability alone, or a struct of it with the class.

    python benchmarks/spark_predict.py [--rows 2000000] [--turns 5]
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
from infer import trained


def by_hand(weights: bytes, num_columns: int) -> Callable[[], Callable[..., Any]]:
    """What predict_batch_udf is given: makes the function that predicts a batch of columns."""

    def make() -> Callable[..., Any]:
        import inspect
        import io

        import numpy as np
        import torch

        torch.set_num_threads(1)
        state = torch.load(io.BytesIO(weights), weights_only=True)
        net = torch.nn.Sequential(
            torch.nn.Linear(28, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1)
        )
        values = [value for name, value in state.items() if name.startswith("net.")]
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.data.copy_(value)
        mean, scale = state["standardise.mean"], state["standardise.scale"]

        def predict(*columns: np.ndarray) -> np.ndarray:
            rows = columns[0] if num_columns == 1 else np.stack(columns, axis=1)
            with torch.inference_mode():
                given = torch.from_numpy(rows.astype(np.float32, copy=False))
                return torch.sigmoid(net((given - mean) * scale).squeeze(1)).numpy()

        # Spark counts the parameters.
        kind = inspect.Parameter.POSITIONAL_ONLY
        parameters = [inspect.Parameter(f"c{k}", kind) for k in range(num_columns)]
        predict.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return predict

    return make


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F
    from pyspark.sql.types import FloatType

    from ddlflow.infer.model import load_model
    from ddlflow.spark import predict_udf

    model, source = trained(), data.collider(options.rows)
    names = load_model(model).inputs
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": "2g"}
    builder = SparkSession.builder.master("local[2]").config(map=settings)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    frame = spark.read.parquet(str(source))
    weights = Path(model, "weights.pt").read_bytes()
    size = {"return_type": FloatType(), "batch_size": 10_000}
    columns = predict_batch_udf(by_hand(weights, 28), **size)
    array = predict_batch_udf(by_hand(weights, 1), **size, input_tensor_shapes=[[28]])
    alone, whole = predict_udf(model, column="probability"), predict_udf(model)
    ways = {
        "by hand, columns": frame.select(columns(*names).alias("p")),
        "by hand, an array": frame.select(array(F.array(*names)).alias("p")),
        "probability": frame.select(alone(*names).alias("p")),
        "struct of the row": frame.select(whole(F.struct("*")).getField("probability").alias("p")),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    sums = {}
    for turn in range(options.turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            sums[name] = way.agg(F.sum("p")).collect()[0][0]
            if turn:  # the first one starts workers, which import PyTorch
                took[name].append(time.perf_counter() - began)
    assert max(sums.values()) - min(sums.values()) < 1e-6 * max(sums.values()), sums
    first, second = took["by hand, columns"], took["by hand, an array"]
    best = [min(pair) for pair in zip(first, second, strict=True)]
    for name, seconds in took.items():
        ratios = [a / b for a, b in zip(best, seconds, strict=True)]
        rate = options.rows / statistics.median(seconds)
        print(
            f"{name:20} {rate / 1e6:6.3f} M rows/s; {statistics.median(ratios):.2f} of the better "
            f"by hand ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    spark.stop()


if __name__ == "__main__":
    main()
