"""Tables as sources of a run: exported once a command, by the engine they are of."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ddlflow.engines import Engine, open_engine
from ddlflow.errors import DataError, SpecError
from ddlflow.report.screen import Screen
from ddlflow.runs.apply import predict
from ddlflow.runs.check import check
from ddlflow.runs.exports import located
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import PrepareResult
from ddlflow.runs.session import Session
from ddlflow.runs.stages import infer, prepare, train
from ddlflow.spec.load import load, load_site

CODE = """
import os
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

FOLDER = Path("FOLDER")


def frame(part, parts):
    ids = np.random.default_rng(1).permutation(600)[part::parts]
    shift = float((FOLDER / "shift").read_text())
    (FOLDER / f"read-{part}-{os.getpid()}").touch()
    words = np.array(["a", "b", None], dtype=object)[ids % 3]
    return pd.DataFrame({"id": ids, "x": ids / 8 + shift, "word": words, "y": ids % 2})


def delayed():
    parts = int((FOLDER / "parts").read_text())
    return [dask.delayed(frame)(part, parts) for part in range(parts)]


def dataframe():
    return dd.from_delayed(delayed())


def bag():
    import dask.bag

    return dask.bag.from_sequence(range(3), npartitions=3).map(frame, 3)


def twice(made):
    return made.assign(x=made.x * 2)


def half(made):
    return [part[part.id < 300] for part in made]


def in_memory():
    return frame(0, 3)


def raises():
    raise KeyError("no such column")


def dies():
    def no_frame():
        raise ValueError("no connection")

    return [dask.delayed(no_frame)()]
"""
SITE = {"engine": {"use": "dask", "workers": 2, "threads": 1}, "device": "cpu"}


def request_of(source: Any, **data: Any) -> Any:
    return {
        "name": "t",
        "data": {"source": source, "label": "y", "exclude": ["id"], **data},
        "model": {"use": "mlp", "hidden": [4]},
        "train": {"objective": "binary", "epochs": 1, "batch_rows": 100},
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made_tables.py").write_text(CODE.replace('FOLDER")', f'{tmp_path}")', 1))
    (tmp_path / "shift").write_text("0")
    (tmp_path / "parts").write_text("3")
    return tmp_path


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One for all commands: its workers know modules of earlier ones."""
    with open_engine(load_site(SITE), slots=2, threads=1) as opened:
        yield opened


@pytest.fixture
def sessions(engine: Engine) -> Callable[[Any], Session]:
    """Opens sessions, each of a command of its own."""

    def opened(pipeline: Any) -> Session:
        session = Session(load(pipeline, SITE), Screen())
        session._engine = engine
        return session

    return opened


def shards_of(prepared: Stage[PrepareResult]) -> dict[str, bytes]:
    place = Path(prepared.folder) / "shards"
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def test_a_table_of_dask_is_exported_sorted_and_cached_by_what_it_holds(
    folder: Path, sessions: Any
) -> None:
    pipeline = request_of({"dask": "made_tables:delayed", "key": ["id"]})
    first = prepare(sessions(pipeline))
    assert sum(first.value.rows.values()) == 600
    assert not any("key" in warning for warning in first.value.warnings)
    (folder / "parts").write_text("7")
    again = prepare(sessions(pipeline))  # exported anew, and found to be the same
    assert again.cached
    (folder / "shift").write_text("1")
    changed = prepare(sessions(pipeline))
    assert not changed.cached
    assert changed.value.digest != first.value.digest
    (folder / "shift").write_text("0")
    frames = prepare(sessions(request_of({"dask": "made_tables:dataframe", "key": ["id"]})))
    assert shards_of(frames) == shards_of(first)


def test_a_table_that_changes_between_passes_is_one_table(folder: Path, sessions: Any) -> None:
    pipeline = request_of({"dask": "made_tables:delayed", "key": ["id"]})
    pipeline["data"]["test_source"] = dict(pipeline["data"]["source"])
    session = sessions(pipeline)
    before = located(session)
    reads = len(list(folder.glob("read-*")))
    (folder / "shift").write_text("5")
    time.sleep(0.01)
    assert located(session) == before
    assert before.source == before.test_source
    prepared = prepare(session)
    assert len(list(folder.glob("read-*"))) == reads
    assert sum(prepared.value.rows.values()) == 1200


def test_a_table_without_a_key_says_so_once_and_code_of_a_transform_counts(
    folder: Path, sessions: Any
) -> None:
    table = {"dask": "made_tables:dataframe", "transform": "made_tables:twice"}
    first = prepare(sessions(request_of(table)))
    said = [w for w in first.value.warnings if "data.source has no key" in w]
    assert len(said) == 1
    bag = prepare(sessions(request_of({"dask": "made_tables:bag"})))
    assert sum(bag.value.rows.values()) == 600
    code = (folder / "made_tables.py").read_text()
    (folder / "made_tables.py").write_text(code.replace("made.x * 2", "made.x * 3"))
    os.utime(folder / "made_tables.py", (1, 1))
    assert not prepare(sessions(request_of(table))).cached


def test_a_model_predicts_tables_as_it_predicts_files(
    folder: Path, sessions: Callable[[Any], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"dask": "made_tables:delayed", "key": ["id"]}
    pipeline = request_of(table, test_source={**table, "transform": "made_tables:half"})
    pipeline["infer"] = {"keys": ["id"]}
    session = sessions(pipeline)
    prepared = prepare(session)
    trained = train(session, prepared)
    assert not list(Path(trained.value.model).glob("code/*"))  # a model needs no table's code
    inferred = infer(session, prepared, trained)
    own = pq.read_table(inferred.value.predictions)
    assert own["id"].to_pylist() == list(range(300))
    assert set(own["split"].to_pylist()) == {"test"}
    opened = session.engine
    monkeypatch.setattr(Session, "engine", property(lambda _: opened))
    given = "{dask: 'made_tables:delayed', transform: 'made_tables:half', key: [id]}"
    said = predict(trained.value.model, given, out=folder / "out", on=SITE, keys=["id"])
    assert said["rows"] == 300
    again = pq.read_table(folder / "out")
    assert again["prediction"].to_pylist() == own["prediction"].to_pylist()
    with pytest.raises(SpecError, match=r"source\.dask is 'x'; expected module:name"):
        predict(trained.value.model, {"dask": "x"}, out=folder / "no", on=SITE)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"dask": "made_tables:in_memory"}, "gave a DataFrame. Return a Dask DataFrame, or a li"),
        ({"dask": "made_tables:raises"}, r"raises KeyError: 'no such column' \(made_tables.py:"),
        ({"dask": "made_tables:dies"}, "ValueError.*no connection"),
        ({"dask": "made_tables:delayed", "key": ["nr"]}, "key names column nr, which"),
        ({"dask": "made_tables:delayed", "key": ["y"]}, "does not tell the rows of Dask's table"),
        ({"dask": "made_tables:delaid"}, "has no delaid. Did you mean 'delayed'"),
        ({"spark": "SELECT 1"}, "and the site's engine is dask. Run it on a site with engine.use"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value.values())),
)
def test_what_is_wrong_with_a_table_is_one_line_and_nothing_is_left(
    folder: Path, sessions: Any, table: dict[str, Any], said: str
) -> None:
    with pytest.raises((SpecError, DataError), match=said) as told:
        prepare(sessions(request_of(table)))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("data.source")
    assert list((folder / ".ddlflow").rglob("ddlflow-table.json")) == []


def test_check_says_what_a_table_is_and_what_it_cannot_know(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    def said(source: Any) -> list[str]:
        return [
            f"{f.level}: {f.text}" for f in check(request_of(source), SITE) if f.what == "source"
        ]

    table = {"dask": "made_tables:delayed", "key": ["id"]}
    (known,) = said(table)
    assert known.startswith("ok: data.source: Dask's table made_tables:delayed, which the workers")
    assert "sorted by id" in known
    assert "not known here" in known
    _, note = said({"dask": "made_tables:delayed"})
    assert note.startswith("note: data.source has no key")
    (wrong,) = said({"spark": "events"})
    assert "error: the pipeline given: data.source is Spark's table events, and engine.use" in wrong
    (unknown,) = said({"dask": "made_tables:nothing"})
    assert unknown.startswith("error")
    assert "has no nothing" in unknown
    assert not (folder / ".ddlflow").exists()
