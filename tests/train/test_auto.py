"""What auto stands for: enough steps for a small table, few epochs for a large one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.spec.pipeline import EarlyStopping, Train
from ddlflow.train.auto import resolve, said

ROWS = st.integers(min_value=1, max_value=10**10)


@given(ROWS, st.integers(min_value=0, max_value=10**9))
def test_numbers_stand_for_auto_and_resolving_twice_changes_nothing(
    rows: int, held_out: int
) -> None:
    found = resolve(Train(objective="binary"), rows, held_out)
    assert 1 <= found.batch_rows <= 1024
    assert found.epochs >= 10
    assert (found.early_stopping is None) == (held_out == 0)
    assert resolve(found, rows, held_out) == found
    assert found.model_dump()["virtual_ranks"] == "auto"


@given(ROWS)
def test_more_rows_are_never_trained_on_in_smaller_batches_or_for_more_epochs(rows: int) -> None:
    spec = Train(objective="binary")
    few, many = resolve(spec, rows, 1), resolve(spec, rows * 2, 1)
    assert few.batch_rows <= many.batch_rows
    assert few.epochs >= many.epochs


@pytest.mark.parametrize("held_out", [0, 100])
@pytest.mark.parametrize("rows", [50, 1_000, 2_000, 20_000])
def test_a_small_table_has_the_steps_that_learning_takes(rows: int, held_out: int) -> None:
    found = resolve(Train(objective="binary"), rows, held_out)
    assert found.epochs * (rows // found.batch_rows) >= 500


def test_what_is_given_stays() -> None:
    given = Train(objective="binary", epochs=3, batch_rows=7)
    assert resolve(given, 1_000, 100).model_dump() == given.model_dump()
    assert said(given, resolve(given, 1_000, 100)) is None
    stopping = EarlyStopping(metric="auroc", patience=2)
    own = resolve(Train(objective="binary", early_stopping=stopping), 1_000, 100)
    assert own.early_stopping == stopping
    assert resolve(Train(objective="binary", batch_rows=500), 1_000, 100).epochs == 2_500


def test_slices_have_the_rows_that_they_may_have() -> None:
    spec = Train(objective="binary", virtual_ranks=50)
    assert resolve(spec, 100, 0).batch_rows == 50
    spec = Train(objective="binary", virtual_ranks=3, micro_batch_rows=100)
    assert resolve(spec, 10**6, 0).batch_rows == 300


# ---- in the stages --------------------------------------------------------------------------

PIPELINE = """
name: few
data: {source: few.parquet, label: y}
model: {use: mlp}
train: {objective: binary, SETTINGS}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(2)
    a, b = random.standard_normal((2, 1_500))
    label = (a + 0.5 * b + 0.3 * random.standard_normal(1_500) > 0).astype(int)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table({"a": a, "b": b, "y": label}), tmp_path / "data" / "few.parquet")
    (tmp_path / "conf" / "local.yaml").write_text("engine: {use: local, workers: 1}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(settings: str, more: str = "") -> Session:
    Path("pipelines/few.yaml").write_text(PIPELINE.replace("SETTINGS", settings) + more)
    return Session(load("few"), Screen())


def test_a_small_table_with_every_default_is_learnt(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened("epochs: auto") as session:
        prepared = stages.prepare(session)
        settled = session.request.pipeline.train
        assert (settled.epochs, settled.batch_rows) == (132, 32)  # 1,200 rows are 38 steps
        trained = stages.train(session, prepared)
        scored = stages.evaluate(session, prepared, trained)
    assert capsys.readouterr().err.count("auto is batch_rows 32, epochs 132 at most") == 1
    assert scored.value.metrics["auroc"] > 0.97  # 0.07 to 0.39 in ten epochs of 1,024 rows
    assert 0 < trained.value.best_epoch <= trained.value.epochs < 132
    # The numbers themselves, given: the same training.
    numbers = "epochs: 132, batch_rows: 32, early_stopping: {patience: 6}"
    with opened(numbers) as session:
        again = stages.train(session, stages.prepare(session))
    assert again.cached
    assert again.key == trained.key


def test_folds_and_trials_get_the_numbers(project: Path) -> None:
    more = (
        "cv: {folds: 2}\n"
        "search: {method: grid, space: {train.batch_rows: [auto, 400], train.epochs: [2]}}\n"
    )
    with opened("seed: 3", more) as session:
        prepared = stages.prepare(session)
        searched = sweeps.search(session, prepared)
        assert searched.value.statuses == {"done": 2, "pruned": 0, "failed": 0}
        sweeps.use_best(session, searched)
        assert session.request.pipeline.train.epochs == 2
        assert session.request.pipeline.train.batch_rows in {32, 400}
        validated = sweeps.cross_validate(session, prepared)
    assert [len(fold.history) for fold in validated.value.folds] == [2, 2]
