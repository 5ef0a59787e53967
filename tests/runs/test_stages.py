"""What a stage's key depends on: what is not repeated, and what is made anew."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import DdlflowError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.inference import inferred_source
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session, Stage
from ddlflow.spec.load import load
from ddlflow.store.store import Store

Prepare = Callable[..., Stage]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares a pipeline's data: ``prepare("cv={folds: 3}", repeat=1)``."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    shop = np.where(random.random(300) < 0.5, "17", "17b")
    rows = {"a": random.normal(size=300), "label": random.integers(0, 2, 300), "shop": shop}
    pipeline = {
        "name": "p",
        "data": {"source": "t.parquet", "label": "label"},
        "model": {"use": "linear"},
        "train": {"objective": "binary"},
    }
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table(rows), "data/t.parquet")
    Path("pipelines/p.yaml").write_text(yaml.safe_dump(pipeline))
    site = {"engine": {"use": "local", "workers": 1, "threads": 1}}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))

    def run(*changes: str, repeat: int = 0) -> Stage:
        with Session(load("p", "local", changes), Screen(io.StringIO())) as session:
            return stages.prepare(session, repeat)

    return run


def test_only_what_decides_the_folds_prepares_anew(prepare: Prepare) -> None:
    plain, first = prepare("data.exclude=[shop]"), prepare("data.exclude=[shop]", "cv={}")
    assert (plain.value.folds, first.value.folds) == (0, 5)
    assert plain.value.rows == first.value.rows
    assert plain.key != first.key
    same = "cv={kind: stratified, predictions: true, repeats: 3}"
    again = prepare("data.exclude=[shop]", same)
    assert again.cached
    assert again.key == first.key
    others = [prepare("data.exclude=[shop]", same, repeat=r) for r in (1, 2)]
    others.append(prepare("data.exclude=[shop]", "cv={seed: 8}"))
    assert len({stage.value.digest for stage in [plain, first, *others]}) == 5


def test_groups_are_dealt_without_a_seed_and_are_no_feature(prepare: Prepare) -> None:
    first = prepare("cv={kind: group, by: shop, folds: 2}")
    assert prepare("cv={kind: group, by: shop, folds: 2, seed: 9}").cached
    manifest = Manifest.load(Path(first.folder))
    assert (manifest.feature_names, manifest.categories) == (("a",), ())
    sizes = [sum(s.rows for s in manifest.shards_of_fold(k)[1]) for k in range(2)]
    assert sum(sizes) == manifest.rows("train") == 240


def test_an_engine_that_ends_badly_fails_no_finished_work(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under load Dask's cluster ended with a TimeoutError, after all was done."""
    from ddlflow.engines.local import LocalEngine

    close = LocalEngine.close

    def late(self: LocalEngine) -> None:
        close(self)
        raise TimeoutError("the cluster did not answer")

    monkeypatch.setattr(LocalEngine, "close", late)
    assert not prepare().cached
    assert prepare().cached

    said = io.StringIO()

    def fails() -> None:
        with Session(load("p", "local", []), Screen(said)) as session:
            raise ValueError(f"the user's, on {session.engine.describe()}")

    with pytest.raises(ValueError, match="the user's"):
        fails()
    assert "note: the engine was slow to end (TimeoutError). What was done stands." in (
        said.getvalue()
    )


@pytest.mark.parametrize("name", ["stage.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_what_is_damaged_is_done_again(prepare: Prepare, name: str, damage: str) -> None:
    """It was a JSONDecodeError, or what had been lost was said to be there."""
    first = prepare()
    path = Path(first.folder) / name
    was = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(was) // 2
        rest = bytes([was[middle] ^ 0x10]) + was[middle + 1 :] if damage == "flipped" else b""
        path.write_bytes(was[:middle] + rest)
    again = prepare()
    assert (again.cached, again.key, again.value) == (False, first.key, first.value)
    if name == "manifest.json":
        assert path.read_bytes() == was
    assert prepare().cached


def test_results_that_are_not_as_they_were_written_are_made_again(
    prepare: Prepare, tmp_path: Path
) -> None:
    """A part of the predictions was flipped, cut off or gone, and the stage was "cached"."""
    prepare()
    made: list[str] = []

    def work(store: Store) -> dict[str, int]:
        folder = Path(store.location)
        (folder / "parts" / "__pycache__").mkdir(parents=True, exist_ok=True)
        (folder / "parts" / "__pycache__" / "a").write_text("any")
        for name in "abc":
            if not (folder / "parts" / name).exists():
                made.append(name)
                (folder / "parts" / name).write_text(name * 9)
        return {"value": 7}

    def run() -> Stage:
        with Session(load("p", "local", []), Screen(io.StringIO())) as session:
            return session.stage("s", {}, work, dict, results=["parts/**/*"])

    parts = Path(run().folder) / "parts"
    assert run().cached
    (parts / "a").write_text("a" * 8 + "b")
    (parts / "b").unlink()
    (parts / "__pycache__" / "a").unlink()
    (parts / "more").write_text("a user's own")
    assert made == ["a", "b", "c"]
    assert not run().cached
    assert made == ["a", "b", "c", "a", "b"]
    assert (parts / "a").read_text() == "a" * 9
    assert run().cached


@pytest.mark.parametrize("mark", ["", '{"spool'])
def test_a_report_that_finds_no_room_says_where(
    prepare: Prepare, tmp_path: Path, mark: str
) -> None:
    """It was an OSError that was not foreseen, and a JSONDecodeError where its mark was cut off."""
    prepare()
    path = tmp_path / ".ddlflow" / "runs" / "roc.png"
    for _ in range(2):
        with Session(load("p", "local", []), Screen(io.StringIO())) as session:
            prepared = stages.prepare(session)
            with (
                pytest.raises(DdlflowError, match=r"roc\.png cannot be written: No space"),
                recorded(session, prepared),
            ):
                raise OSError(errno.ENOSPC, "No space", str(path))
        (left,) = (tmp_path / ".ddlflow" / "unfinished").glob("*.json")
        left.write_text(mark)


def test_the_speed_of_a_training_that_went_on_behind_an_epochs_last_step() -> None:
    """Its attempt trained on no row of that epoch: a speed of 0, which counts for nothing."""
    from ddlflow.runs.record import rows_per_s

    def speed(*speeds: float) -> float:
        history = [{"rows_per_s": one} for one in speeds]
        value: Any = SimpleNamespace(history=history)
        return rows_per_s(Stage("train", "k", "f", 1.0, False, value))

    assert speed(100.0, 0.0, 100.0) == pytest.approx(100.0)
    assert speed(0.0) == speed() == 0.0


@pytest.mark.parametrize(
    ("changes", "predicted"),
    [
        ([], "t.parquet"),
        (["data.test_source=test.parquet"], "test.parquet"),
        (["data.test_source=test.parquet", "infer.source=new.parquet"], "new.parquet"),
    ],
)
@pytest.mark.usefixtures("prepare")
def test_which_rows_are_predicted(changes: list[str], predicted: str) -> None:
    """As the README says it."""
    session: Any = SimpleNamespace(request=load("p", "local", changes))
    prepared: Any = None  # asked only where a source is made
    assert inferred_source(session, prepared) == predicted
