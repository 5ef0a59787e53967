"""Tables of Spark as sources, on a real session: rows, order, types, versions, errors."""

import datetime
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.sources.export_part import ExportedPart, PartWriter
from ddlflow.data.sources.exported import Exported, seal
from ddlflow.data.sources.source import ranges, read
from ddlflow.engines import open_engine
from ddlflow.engines.exporting import TableCall, TableOrder
from ddlflow.engines.given import using
from ddlflow.errors import DataError, SpecError
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.runs.stages import prepare as prepare_stage
from ddlflow.spec.load import load, load_site
from ddlflow.spec.pipeline import Data
from ddlflow.spec.tables import SparkTable
from ddlflow.store.folder import FolderStore

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ddlflow.engines.spark_tables import SparkExport

AT = "data.source"


def planned(
    spark: "SparkSession",
    table: Mapping[str, Any],
    transform: Callable[..., Any] | None = None,
    data_root: Path = Path("/nowhere"),
) -> "SparkExport":
    from ddlflow.engines.spark_tables import SparkExport

    def failed(error: Exception) -> SpecError:
        return SpecError(f"{type(error).__name__}: {error}")

    call = TableCall(transform, failed) if transform else None
    spec = SparkTable.model_validate(table)
    return SparkExport(spark, TableOrder(spec, AT, data_root, transform=call))


def exported(
    spark: "SparkSession", folder: Path, table: Mapping[str, Any], **more: Any
) -> Exported:
    plan = planned(spark, table, **more)
    key = tuple(SparkTable.model_validate(table).key)
    told = plan.write(PartWriter(str(folder), key, plan.vectors))
    return seal(
        FolderStore(folder),
        [ExportedPart.from_json(one) for one in told],
        shown="the table t",
        notes=(),
        key=f"{AT}.key",
        map_over=lambda function, items, _: map(function, items),
    )


def rows_of(source: Exported) -> list[dict[str, Any]]:
    names = list(source.schema)
    return [row for p in ranges(source) for b in read(source, p, names) for row in b.to_pylist()]


@contextmanager
def conf(spark: "SparkSession", **settings: str) -> Iterator[None]:
    names = {name: name.replace("__", ".") for name in settings}
    before = {own: spark.conf.get(own, None) for own in names.values()}
    for name, value in settings.items():
        spark.conf.set(names[name], value)
    try:
        yield
    finally:
        for own, value in before.items():
            spark.conf.unset(own) if value is None else spark.conf.set(own, value)


def events(spark: "SparkSession", rows: int = 3_000) -> "DataFrame":
    from pyspark.sql import functions as F

    id_ = F.col("id")
    return spark.range(rows).select(
        (id_ * 7919 % rows).alias("id"),
        (id_ % 3 == 0).alias("y"),
        (id_ * 0.5).alias("x"),
        F.concat(F.lit("c"), (id_ % 5).cast("string")).alias("word"),
    )


def shards_of(source: Exported, folder: Path) -> dict[str, bytes]:
    data = Data(source=source.location, label="y", exclude=["id"])
    prepare(
        data,
        "binary",
        data_root=folder,
        folder=folder / "data",
        map=lambda function, items, _: map(function, items),
    )
    place = folder / "data" / "shards"
    found = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


class FailsOnce:
    """Writes a partition; the first task that has partition 1 dies after its file was written."""

    def __init__(self, write: PartWriter, mark: Path) -> None:
        self._write, self._mark = write, mark

    def __call__(self, number: int, frames: Any) -> dict[str, Any]:
        told = self._write(number, frames)
        if number == 1 and not self._mark.exists():
            self._mark.touch()
            os._exit(1)
        return told


def test_shards_do_not_depend_on_partitions_shuffles_or_a_task_that_died(
    spark: "SparkSession", tmp_path: Path
) -> None:
    from pyspark import cloudpickle

    found: list[dict[str, bytes]] = []
    prints = set()
    for number, partitions in enumerate((1, 3, 7)):
        events(spark).repartition(partitions).createOrReplaceTempView("events")
        more = {"spark__sql__shuffle__partitions": str(partitions + 1)}
        more["spark__sql__execution__arrow__maxRecordsPerBatch"] = str(97 * partitions)
        with conf(spark, **more):
            source = exported(
                spark, tmp_path / str(number), {"spark": "SELECT * FROM events", "key": ["id"]}
            )
        assert [row["id"] for row in rows_of(source)] == list(range(3_000))
        prints.add(source.fingerprint)
        found.append(shards_of(source, tmp_path / f"shards-{number}"))
    import sys

    plan = planned(spark, {"spark": "events", "key": ["id"]})
    write = FailsOnce(PartWriter(str(tmp_path / "died"), ("id",)), tmp_path / "mark")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with conf(spark, spark__sql__adaptive__enabled="false"):
        told = plan.write(write)
    assert (tmp_path / "mark").exists()
    written = len(list((tmp_path / "died").glob("*.arrow")))
    assert written == len(told) + 1 == 4
    source = seal(
        FolderStore(tmp_path / "died"),
        [ExportedPart.from_json(one) for one in told],
        shown="t",
        notes=(),
        key="k",
        map_over=lambda function, items, _: map(function, items),
    )
    prints.add(source.fingerprint)
    found.append(shards_of(source, tmp_path / "shards-died"))
    assert len(prints) == 1
    assert len(found[0]) == 3
    assert all(shards == found[0] for shards in found)


def test_types_have_stated_answers_in_any_time_zone(spark: "SparkSession", tmp_path: Path) -> None:
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql import types as T

    query = """
        SELECT 1L AS id, CAST('1.50' AS DECIMAL(10, 2)) AS price, DATE '2024-02-29' AS day,
          TIMESTAMP '2024-01-01 05:00:00' AS at, TIMESTAMP_NTZ '2024-01-01 05:00:00' AS wall,
          hour(TIMESTAMP '2024-01-01 05:00:00Z') AS hour, ARRAY(1.5F, 2.5F) AS steps, true AS is_so,
          X'00FF' AS raw, CAST(NULL AS STRING) AS word,
          named_struct('lat', 1.5D) AS place, map('a', 1) AS counts
        UNION ALL SELECT 2L, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'x', NULL, NULL
    """
    prints = set()
    for zone in ("Asia/Tokyo", "America/New_York"):
        with conf(spark, spark__sql__session__timeZone=zone):
            source = exported(spark, tmp_path / zone, {"spark": query, "key": ["id"]})
            assert spark.conf.get("spark.sql.session.timeZone") == zone
        prints.add(source.fingerprint)
    assert len(prints) == 1
    utc = datetime.UTC
    assert rows_of(source)[0] == {
        "id": 1,
        "price": Decimal("1.50"),
        "day": datetime.date(2024, 2, 29),
        "at": datetime.datetime(2024, 1, 1, 5, tzinfo=utc),
        "wall": datetime.datetime(2024, 1, 1, 5),
        "hour": 5,
        "steps": [1.5, 2.5],
        "is_so": True,
        "raw": b"\x00\xff",
        "word": None,
    }
    assert set(rows_of(source)[1].values()) == {None, 2, "x"}
    plan = planned(spark, {"spark": query})
    assert plan.schema is not None
    assert pa.types.is_struct(plan.schema.field("place").type)
    assert pa.types.is_map(plan.schema.field("counts").type)

    vectors = [
        (0, Vectors.dense([1.0, 2.0, 3.0])),
        (1, Vectors.sparse(3, [2], [5.0])),
        (2, None),
    ]
    fields = [T.StructField("id", T.LongType()), T.StructField("v", VectorUDT())]
    spark.createDataFrame(vectors, T.StructType(fields)).createOrReplaceTempView("vectors")
    source = exported(spark, tmp_path / "v", {"spark": "vectors", "key": ["id"]})
    assert source.schema["v"] == pa.list_(pa.float64(), 3)
    assert [row["v"] for row in rows_of(source)] == [[1, 2, 3], [0, 0, 5], None]


def test_readers_tables_views_and_a_transform(spark: "SparkSession", tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    wanted = events(spark, 300)
    wanted.write.parquet(str(tmp_path / "in data root"))
    wanted.write.orc(str(tmp_path / "orc"))
    wanted.write.mode("overwrite").saveAsTable("kept")
    derby = {
        "url": "jdbc:derby:memory:events;create=true",
        "driver": "org.apache.derby.iapi.jdbc.AutoloadedDriver",
        "dbtable": "t",
        "password": "hidden-word",
        "user": "app",
    }
    wanted.select("id", "x").write.format("jdbc").options(**derby).mode("overwrite").save()
    tables: dict[str, Mapping[str, Any]] = {
        "parquet": {"spark": {"format": "parquet", "path": "in data root"}},
        "orc": {"spark": {"format": "orc", "path": f"file://{tmp_path}/orc"}},
        "table": {"spark": "kept"},
        "files": {"spark": f"orc.`{tmp_path}/orc`"},
        "jdbc": {"spark": {"format": "jdbc", "options": derby}},
    }
    for name, table in tables.items():
        source = exported(
            spark, tmp_path / name / "out", {**table, "key": ["id"]}, data_root=tmp_path
        )
        found = rows_of(source)
        assert [row.pop("id" if "id" in row else "ID") for row in found] == list(range(300)), name
    source = exported(
        spark,
        tmp_path / "changed",
        {"spark": "kept", "key": ["id"]},
        transform=lambda frame: frame.where("id < 10").withColumn("twice", F.col("x") * 2),
    )
    assert [row["twice"] / row["x"] for row in rows_of(source) if row["x"]] == [2.0] * 9


def test_a_state_is_known_where_all_that_is_read_are_files(
    spark: "SparkSession", tmp_path: Path
) -> None:
    events(spark, 30).write.parquet(str(tmp_path / "t"))
    files = {"spark": {"format": "parquet", "path": str(tmp_path / "t")}}
    query = f"SELECT id, x FROM parquet.`{tmp_path}/t` WHERE id < 9"
    known = [planned(spark, table).state for table in (files, {"spark": query})]
    assert all(known)
    assert known == [planned(spark, table).state for table in (files, {"spark": query})]
    spark.sql(query).createOrReplaceTempView("seen")
    before = planned(spark, {"spark": "seen"}).state
    spark.sql(query.replace("< 9", "< 8")).createOrReplaceTempView("seen")
    assert before != planned(spark, {"spark": "seen"}).state
    for unknown in (
        f"SELECT *, rand() AS r FROM parquet.`{tmp_path}/t`",
        f"SELECT *, current_date() AS d FROM parquet.`{tmp_path}/t`",
        f"SELECT * FROM parquet.`{tmp_path}/t` WHERE id = (SELECT max(id) FROM seen)",
        "SELECT * FROM VALUES (1), (2) AS t(id)",
    ):
        assert planned(spark, {"spark": unknown}).state == "", unknown
    path = next((tmp_path / "t").glob("*.parquet"))
    os.utime(path, (1, 1))
    spark.catalog.refreshByPath(str(tmp_path / "t"))
    assert planned(spark, files).state not in ("", known[0])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"spark": "SELECT idd FROM range(3)"}, "`idd` cannot be resolved. Did you mean one"),
        ({"spark": "SELECT id FORM range(3)"}, r"Syntax error at or near 'range'.*\(line 1, po"),
        ({"spark": "nowhere.events"}, "The (table or view|schema) `nowhere`"),
        ({"spark": {"format": "delta", "path": "/t"}}, "no reader for format delta.*delta-spark"),
        ({"spark": {"format": "parquet", "path": "/nowhere/t"}}, "Path does not exist"),
        ({"spark": "SELECT 1 AS a, 2 AS a"}, "more than one column named a"),
        ({"spark": "SELECT 1 AS a", "key": ["b"]}, "key names column b, which .* lacks"),
        (
            {
                "spark": {
                    "format": "jdbc",
                    "options": {"url": "jdbc:none://h/db?password=word-1", "dbtable": "t"},
                }
            },
            "no JDBC driver for this url",
        ),
        (
            {"spark": {"format": "jdbc", "options": {"password": {"env": "NOT_SET_1"}}}},
            "NOT_SET_1, which is not set",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value["spark"])[:30],
)
def test_what_spark_cannot_plan_is_one_line(
    spark: "SparkSession", capfd: pytest.CaptureFixture[str], table: dict[str, Any], said: str
) -> None:
    with pytest.raises((SpecError, DataError), match=said) as told:
        planned(spark, table)
    text = str(told.value)
    assert text.startswith(AT)
    assert "\n" not in text
    assert not any(word in text for word in ("SQLSTATE", "word-1", "Project", "org.apache.spark.s"))
    assert capfd.readouterr().err == ""


def test_what_fails_as_rows_are_read_is_one_line_without_secrets(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_WORD", "hidden-word-2")
    options = {
        "url": "jdbc:derby:memory:missing",
        "driver": "org.apache.derby.iapi.jdbc.AutoloadedDriver",
        "dbtable": "t",
        "password": {"env": "DB_WORD"},
    }
    for table, said in (
        ({"spark": "SELECT int(concat('a', id)) AS n FROM range(9)"}, "The value 'a[0-9]' of the"),
        ({"spark": {"format": "jdbc", "options": options}}, "Database 'memory:missing' not found"),
        ({"spark": "SELECT 1 AS id FROM range(9)", "key": ["id"]}, "two have id 1"),
    ):
        with pytest.raises((SpecError, DataError), match=said) as told:
            exported(spark, tmp_path / "x", table)
        assert "\n" not in str(told.value)
        assert "hidden-word" not in str(told.value)


def test_a_transform_that_gives_no_frame_is_told(spark: "SparkSession") -> None:
    with pytest.raises(SpecError, match=r"which gave a int\. Return a DataFrame of Spark"):
        planned(spark, {"spark": "SELECT 1 AS a", "transform": "t:f"}, transform=lambda _: 3)
    assert json.dumps(SparkTable(spark="SELECT 1").model_dump())


def test_a_run_exports_files_of_spark_again_only_once_they_change(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = {"engine": {"use": "spark", "workers": 2, "threads": 1}, "device": "cpu"}
    table = {"spark": {"format": "parquet", "path": str(tmp_path / "t")}, "key": ["id"]}
    pipeline = {
        "name": "t",
        "data": {"source": table, "label": "y", "exclude": ["id"]},
        "model": {"use": "mlp", "hidden": [4]},
        "train": {"objective": "binary", "epochs": 1, "batch_rows": 100},
    }
    events(spark, 600).write.parquet(table["spark"]["path"])  # type: ignore[index]
    with using(spark), open_engine(load_site(site), slots=2, threads=1) as engine:

        def prepared(**data: Any) -> Any:
            values = {**pipeline, "data": {**pipeline["data"], **data}}  # type: ignore[dict-item]
            session = Session(load(values, site), Screen())
            session._engine = engine
            return prepare_stage(session)

        assert not prepared().cached
        (made,) = tmp_path.glob(".ddlflow/export/*/stage.json")
        before = made.stat().st_mtime_ns
        assert prepared().cached
        assert made.stat().st_mtime_ns == before
        events(spark, 500).write.mode("overwrite").parquet(str(tmp_path / "t"))
        spark.catalog.refreshByPath(str(tmp_path / "t"))
        again = prepared()
        assert sum(again.value.rows.values()) == 500
        assert len([*tmp_path.glob(".ddlflow/export/*/stage.json")]) == 2
        with pytest.raises(DataError, match="names column nothing, which the source lacks"):
            prepared(label="nothing")
        struct = {"spark": "SELECT id, y, struct(x) AS place FROM events", "key": ["id"]}
        events(spark, 500).createOrReplaceTempView("events")
        with pytest.raises(DataError, match=r"place is of type struct<.*Select its fields"):
            prepared(source=struct)
        assert (
            sum(
                prepared(
                    source=struct, exclude=["id", "place"], derive={"a": "id % 7"}
                ).value.rows.values()
            )
            == 500
        )
        with pytest.raises(SpecError, match="json:dumps, and the site's engine is spark"):
            prepared(source={"dask": "json:dumps"})
