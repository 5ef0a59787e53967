"""A course's notebook of signal and background, all of it in Spark: CSV to AUC.

Its users read HIGGS-like events, looked at them, and trained a dense layer of 100 on ten cores with
BigDL. The lines that trained are ddlflow's here; all others are Spark's own, as they were. What the
notebook shows is written to a folder: two plots, the AUC, and the time to train over workers.

    python benchmarks/spark_course.py [--rows 1000000] [--workers 1 2]
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FEATURES = 28


@dataclass(frozen=True)
class Timed:
    """A training over so many workers."""

    workers: int
    train_s: float  # the stage, with the start of its ranks
    rows_per_s: float  # of the loop
    auc: float  # of the rows held out, by Spark's evaluator
    model_digest: str


def to_parquet(spark: "SparkSession", text: Path, to: Path) -> "DataFrame":
    """The CSV file, read with a schema, as Parquet."""
    with text.open() as file:
        names = next(csv.reader(file))
    schema = ", ".join(f"`{name}` double" for name in names)
    spark.read.csv(str(text), schema=schema, header=True).write.parquet(str(to))
    return spark.read.parquet(str(to))


def plot_features(events: "DataFrame", names: Sequence[str], to: Path, bins: int = 50) -> None:
    """Signal against background, feature by feature: Spark counts, so no row comes here."""
    from pyspark.sql import functions as F

    ends = events.agg(
        F.struct(*(F.percentile_approx(name, [0.005, 0.995]).alias(name) for name in names))
    ).first()[0]
    widths = {name: (ends[name][1] - ends[name][0]) / bins or 1.0 for name in names}
    places = F.array(
        *(
            F.struct(
                F.lit(name).alias("name"),
                F.floor((F.col(name) - ends[name][0]) / widths[name]).cast("int").alias("bin"),
            )
            for name in names
        )
    )
    one = events.select("label", F.explode(places).alias("at"))
    counts = {name: np.zeros((2, bins)) for name in names}
    for row in one.groupBy("label", "at").count().collect():
        if row.at.bin is not None and 0 <= row.at.bin < bins:
            counts[row.at.name][int(row.label), row.at.bin] = row["count"]
    figure = Figure((16, 22), layout="constrained")
    for axes, (name, of) in zip(figure.subplots(7, 4).ravel(), counts.items(), strict=False):
        edges = ends[name][0] + widths[name] * np.arange(bins + 1)
        for label, words in ((1, "signal"), (0, "background")):
            share = of[label] / max(of[label].sum(), 1)
            axes.stairs(share, edges, label=words, fill=label == 1, alpha=0.6)
        axes.set_title(name, fontsize=9)
    figure.axes[0].legend()
    figure.savefig(to)


def plot_correlations(vectors: "DataFrame", names: Sequence[str], to: Path) -> np.ndarray:
    """Pearson's correlation of any two features."""
    from pyspark.ml.stat import Correlation

    found: np.ndarray = Correlation.corr(vectors, "features").first()[0].toArray()
    figure = Figure((10, 9), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(found, vmin=-1, vmax=1, cmap="RdBu_r"))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.savefig(to)
    return found


def course(
    spark: "SparkSession",
    text: Path,
    out: Path,
    *,
    workers: Sequence[int] = (1, 2, 4),
    batch_rows: int = 14_000,
    epochs: int = 10,
    site: str = "local",
) -> list[Timed]:
    """The notebook from its first cell to its last.

    Args:
        spark: the session.
        text: a CSV file with a column label and the features.
        out: a folder for all that comes of it.
        workers: trainings are timed over each.
        batch_rows: rows in an optimizer step over all workers.
        epochs: of each training.
        site: what ddlflow keeps its storage and its record by.
    """
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler

    from ddlflow.spark import Estimator

    out.mkdir(parents=True, exist_ok=True)
    events = to_parquet(spark, text, out / "events.parquet")
    names = [name for name in events.columns if name != "label"]
    assert len(names) == FEATURES
    plot_features(events, names, out / "features.png")
    vectors = VectorAssembler(inputCols=names, outputCol="features").transform(events)
    plot_correlations(vectors, names, out / "correlations.png")
    # Whoever reads a folder again gets the same rows, whichever of them are drawn.
    train, test = vectors.select("features", "label").randomSplit([0.8, 0.2], seed=42)
    found = []
    for number in workers:
        # A seed of its own: else the second training would be found done, and take no time.
        estimator = Estimator(
            hidden=[100],
            batchRows=batch_rows,
            epochs=epochs,
            workers=number,
            seed=number,
            site=site,
            settings={"train.virtual_ranks": max(workers)},
        )
        model = estimator.fit(train)
        auc = BinaryClassificationEvaluator().evaluate(model.transform(test))
        stages = {stage["name"]: stage["seconds"] for stage in model.summary["stages"]}
        speed, digest = model.summary["rows_per_s"], model.summary["model_digest"]
        found.append(Timed(number, stages["train"], speed, auc, digest))
    model.write().overwrite().save(str(out / "model"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    import data
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.log.level": "ERROR",
    }
    master = f"local[{max(options.workers)}]"
    spark = SparkSession.builder.master(master).config(map=settings).getOrCreate()
    out = data.ROOT / f"spark-course-{time.time():.0f}"
    for one in course(spark, data.head_csv(options.rows), out, workers=options.workers):
        print(
            f"{one.workers} workers: train {one.train_s:.1f} s with the ranks' start, "
            f"{one.rows_per_s:,.0f} rows/s, AUC {one.auc:.4f}"
        )
    print(f"plots and model: {out}")
    spark.stop()


if __name__ == "__main__":
    main()
