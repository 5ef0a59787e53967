"""The course's notebook on a small number of collider rows."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.samples.generators import plan, write_part

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCRIPT = Path(__file__).parents[2] / "benchmarks/spark_course.py"


def test_from_csv_to_auc(spark: "SparkSession", here: Path) -> None:
    spec = importlib.util.spec_from_file_location("spark_course", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for part in plan("collider", 4_000, here / "events"):
        write_part(part)
    pyarrow.csv.write_csv(pq.read_table(here / "events"), here / "events.csv")
    found = script.course(
        spark,
        here / "events.csv",
        here / "out",
        workers=(1, 2),
        batch_rows=200,
        epochs=4,
        site="site.yaml",
    )
    assert [one.workers for one in found] == [1, 2]
    assert all(one.auc > 0.6 for one in found)
    assert found[0].model_digest != found[1].model_digest
    for name in ("features.png", "correlations.png"):
        assert (here / "out" / name).stat().st_size > 20_000

    from ddlflow.spark import Model

    model = Model.load(str(here / "out/model"))
    assert model.summary["model_digest"] == found[1].model_digest
    assert len(model.trained.inputs) == 28
    assert model.metrics["auroc"] == pytest.approx(found[1].auc, abs=0.15)
