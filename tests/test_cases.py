"""Small inputs that were once answered badly: each is right, or is told what makes it right.

A case is a folder of tests/cases: ``make.py`` makes its data in a project, ``pipeline.yaml`` uses
it. What is right comes from pandas, which reads the same files with the settings it needs. The
table `CASES` says of each what happens; where a case is refused, the advice is followed.
"""

import gc
import io
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import DdlflowError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.check import precheck
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

FOLDER = Path(__file__).parent / "cases"
SITE = "engine: {use: local, workers: 1, threads: 1}\ndevice: cpu\ndata_root: data\n"


@dataclass
class Outcome:
    """What a run of a case left: the data set, and of a training its model and predictions."""

    project: Path
    manifest: Manifest
    folder: Path
    said: str
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: pd.DataFrame | None = None

    def column(self, name: str) -> np.ndarray:
        """A numeric feature over all rows, in the source's order."""
        at = self.manifest.feature_names.index(name)
        return self._in_order("features")[:, at]

    def texts(self, name: str) -> list[Any]:
        """A category over all rows as its values; None for the bucket of all others."""
        names = [category.name for category in self.manifest.categories]
        codes = self._in_order("categories")[:, names.index(name)]
        values = [None, *self.manifest.categories[names.index(name)].values]
        return [values[code] for code in codes]

    @property
    def rows(self) -> int:
        return len(self._in_order("row"))

    def _in_order(self, name: str) -> np.ndarray:
        parts = [map_shard(self.folder / shard.path) for shard in self.manifest.shards]
        order = np.argsort(np.concatenate([part["row"] for part in parts]))
        return np.concatenate([part[name] for part in parts])[order]


@dataclass(frozen=True)
class Case:
    """What happens with a case.

    Attributes:
        right: looks at what came of it.
        says: what it is refused with, if it is: a pattern.
        advice: the settings that the refusal advises.
        train: whether it is trained, or only prepared.
        make: arguments of make.py.
    """

    right: Callable[[Outcome], None]
    says: str = ""
    advice: tuple[str, ...] = ()
    train: bool = False
    make: tuple[str, ...] = ()


def frame(outcome: Outcome, path: str, **reading: Any) -> pd.DataFrame:
    """What pandas reads there."""
    if path.endswith(".parquet"):
        return pd.read_parquet(outcome.project / "data" / path)
    return pd.read_csv(outcome.project / "data" / path, **reading)


def same_numbers(outcome: Outcome, table: pd.DataFrame, *names: str) -> None:
    assert outcome.rows == len(table)
    assert list(outcome.manifest.feature_names) == list(names)
    for name in names:
        wanted = table[name].to_numpy(np.float64)
        np.testing.assert_allclose(outcome.column(name), wanted, rtol=1e-6, err_msg=name)


def same_texts(outcome: Outcome, table: pd.DataFrame, name: str) -> None:
    texts = table[name].astype(object).where(table[name].notna(), None)
    assert outcome.texts(name) == texts.tolist()


# ---- reading ------------------------------------------------------------------------------------


def _cat_late_text(outcome: Outcome) -> None:
    table = frame(outcome, "cat_late_text/t.csv", dtype={"code": str})
    assert outcome.rows == len(table)
    same_texts(outcome, table, "code")


def _country_na(outcome: Outcome) -> None:
    same_texts(outcome, frame(outcome, "country_na/t.csv", keep_default_na=False), "country")


def _cr_only(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "cr_only/t.csv", lineterminator="\r"), "a", "b", "c")


def _csv_index(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "csv_index/t.csv", index_col=0), "a", "b", "c")


def _header_newline(outcome: Outcome) -> None:
    table = frame(outcome, "header_newline/t.csv")
    same_numbers(outcome, table, "energy\n[GeV]", "b", "c")


def _hive_bigint(outcome: Outcome) -> None:
    assert outcome.rows == 2000
    (category,) = outcome.manifest.categories
    assert set(category.values) == {"18446744073709551615", "12345678901234567890"}
    assert sorted(set(outcome.texts("h"))) == sorted(category.values)


def _index_leak(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "index_leak/t.parquet"), "a", "b", "c")


def _json_array(outcome: Outcome) -> None:
    table = pd.read_json(outcome.project / "data/json_array/t.json")
    same_numbers(outcome, table, "a", "b", "c")


def _jsonl_late_key(outcome: Outcome) -> None:
    folder = outcome.project / "data/jsonl_late_key"
    table = pd.concat([pd.read_json(folder / f"p{k}.jsonl", lines=True) for k in (0, 1)])
    assert outcome.rows == len(table)
    assert set(outcome.manifest.feature_names) == {"a", "b"}
    np.testing.assert_allclose(outcome.column("a"), table["a"].to_numpy(), rtol=1e-6)


def _latin1(outcome: Outcome) -> None:
    same_texts(outcome, frame(outcome, "latin1/t.csv", encoding="latin-1"), "ort")


def _null_file(outcome: Outcome) -> None:
    folder = outcome.project / "data/null_file"
    table = pd.concat([pd.read_parquet(folder / f"p{k}.parquet") for k in (0, 1)])
    same_numbers(outcome, table, "a", "b", "c")
    same_texts(outcome, table, "s")


def _quoted_newline(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "quoted_newline_3mb/t.csv"), "a")


def _string_view(outcome: Outcome) -> None:
    table = pa.ipc.open_file(outcome.project / "data/string_view/t.arrow").read_all()
    assert outcome.texts("s") == table["s"].to_pylist()


def _symlink_glob(outcome: Outcome) -> None:
    snap = outcome.project / "data/symlink_glob/snap"
    table = pd.concat([pd.read_parquet(snap / f"part-{k}.parquet") for k in (0, 1)])
    same_numbers(outcome, table, "a", "b", "c")


def _thousands(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "thousands/t.csv", thousands=","), "price", "b")


def _trailing_comma(outcome: Outcome) -> None:
    same_numbers(outcome, frame(outcome, "trailing_comma/t.csv").iloc[:, :-1], "a", "b", "c")


def _uint64_cat(outcome: Outcome) -> None:
    table = frame(outcome, "uint64_cat/t.parquet")
    assert [int(value) for value in outcome.texts("u")] == table["u"].tolist()


# ---- learning and predicting --------------------------------------------------------------------


def _epoch_ms(outcome: Outcome) -> None:
    assert outcome.manifest.constant == ()
    assert outcome.metrics["auroc"] > 0.95


def _agrees(outcome: Outcome, truth: pd.Series, least: float) -> None:
    assert outcome.predictions is not None
    assert len(outcome.predictions) == len(truth)
    agreement = (outcome.predictions["prediction"].to_numpy() == truth.to_numpy()).mean()
    assert agreement >= least


def _infer_digits(outcome: Outcome) -> None:
    """Predictions for the CSV are those for the same table in Parquet, keys as they stand."""
    from ddlflow.infer.predict import infer

    (model,) = (outcome.project / ".ddlflow/train").glob("*/model")
    found = {}
    for name in ("new.csv", "new.parquet", "late.csv"):
        out = outcome.project / name.replace(".", "-")
        infer(
            model,
            f"infer_digits/{name}",
            out,
            keys=["id"],
            data_root=outcome.project / "data",
            threads=1,
            map_over=lambda function, items, _: map(function, items),
        )
        found[name] = pq.read_table(out).to_pandas()
    pd.testing.assert_frame_equal(found["new.csv"], found["new.parquet"])
    truth = frame(outcome, "infer_digits/train.parquet")
    assert (found["new.csv"]["prediction"].to_numpy() == truth["y"].to_numpy()).all()
    late = frame(outcome, "infer_digits/late.csv", dtype=str)
    assert found["late.csv"]["id"].tolist() == late["id"].tolist()


def _test_source_types(outcome: Outcome) -> None:
    assert outcome.metrics["accuracy"] == 1.0


def _price_regression(outcome: Outcome) -> None:
    assert outcome.metrics["r2"] > 0.95


def _rename(outcome: Outcome) -> None:
    """The same project and storage, the table under other names again and again."""
    for version in (1, 2, 3, 4):
        _make("rename_classes", outcome.project, str(version))
        found = _run(outcome.project, train=True)
        table = frame(found, "rename/t.parquet")
        assert ("train: done, cached" in found.said) == (version == 1)
        _agrees(found, table["y"], 0.95)


def _learns(outcome: Outcome) -> None:
    assert outcome.metrics["accuracy"] > 0.5


def _bn_one(outcome: Outcome) -> None:
    assert outcome.metrics["auroc"] > 0.5


def _tiny5(outcome: Outcome) -> None:
    assert outcome.rows == 5


# Three epochs of a thousand rows are two dozen steps: the cases' own are too few to learn by.
LONG_ENOUGH = ("train.epochs=auto", "train.batch_rows=auto")

CASES = {
    "cat_late_text": Case(
        _cat_late_text, r"data\.text", ("data.text=[code]", "data.categorical=[]")
    ),
    "country_na": Case(_country_na, advice=('data.missing_values=[""]',)),
    "cr_only": Case(_cr_only),
    "csv_index": Case(_csv_index),
    "epoch_ms": Case(_epoch_ms, train=True),
    "header_newline": Case(_header_newline),
    "hive_bigint": Case(_hive_bigint),
    "index_leak": Case(_index_leak),
    "infer_digits": Case(_infer_digits, train=True),
    "json_array": Case(_json_array),
    "jsonl_late_key": Case(_jsonl_late_key),
    "latin1": Case(_latin1, r"data\.encoding", ("data.encoding=latin-1",)),
    "m_bn_one": Case(_bn_one, advice=LONG_ENOUGH, train=True),
    "m_five": Case(_learns, advice=LONG_ENOUGH, train=True),
    "m_lazy": Case(_learns, advice=LONG_ENOUGH, train=True),
    "m_nll": Case(
        _learns, r"2 classes|3 outputs|\[", ("model={use: linear}", *LONG_ENOUGH), train=True
    ),
    "m_three": Case(_learns, r"5 classes|\[", ("model={use: linear}", *LONG_ENOUGH), train=True),
    "null_file": Case(_null_file),
    "price_regression": Case(_price_regression, advice=LONG_ENOUGH, train=True),
    "quoted_newline_3mb": Case(_quoted_newline),
    "rename_classes": Case(_rename, train=True, make=("1",)),
    "string_view": Case(_string_view),
    "symlink_glob": Case(_symlink_glob),
    "test_source_types": Case(_test_source_types, train=True),
    "thousands": Case(_thousands, r"data\.thousands", ('data.thousands=","',)),
    "tiny5": Case(_tiny5, r"cv\.folds|fold", ("cv=null",)),
    "trailing_comma": Case(_trailing_comma),
    "uint64_cat": Case(_uint64_cat),
}


def _make(name: str, project: Path, *arguments: str) -> None:
    (project / "data" / name.removesuffix("_classes")).mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a case may leave its files to Python
        patch.setattr(sys, "argv", ["make.py", *arguments])
        runpy.run_path(str(FOLDER / name / "make.py"))
        gc.collect()


def _run(project: Path, *changes: str, train: bool) -> Outcome:
    said = io.StringIO()
    request = load("pipelines/case/pipeline.yaml", "local", changes)
    precheck(request)
    with Session(request, Screen(said)) as session:
        prepared = stages.prepare(session)
        folder = Path(prepared.folder)
        outcome = Outcome(project, Manifest.load(folder), folder, "")
        if train:
            trained = stages.train(session, prepared)
            outcome.metrics = stages.evaluate(session, prepared, trained).value.metrics
            inferred = stages.infer(session, prepared, trained)
            outcome.predictions = pq.read_table(inferred.value.predictions).to_pandas()
    outcome.said = said.getvalue()
    return outcome


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/local.yaml").write_text(SITE)
    return tmp_path


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_is_right_or_told_what_makes_it_right(project: Path, name: str) -> None:
    case = CASES[name]
    shutil.copytree(FOLDER / name, project / "pipelines/case")
    _make(name, project, *case.make)
    if case.says:
        with pytest.raises(DdlflowError, match=case.says) as refused:
            _run(project, train=case.train)
        assert "\n" not in str(refused.value)
        assert not list((project / ".ddlflow").rglob("stage.json")) or case.train
    case.right(_run(project, *case.advice, train=case.train))


def test_every_case_is_in_the_table() -> None:
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == sorted(CASES)
