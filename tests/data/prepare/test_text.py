"""A source of text is parsed once for all passes, and for all data sets that are made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.errors import DataError
from ddlflow.spec.cv import Cv
from ddlflow.spec.pipeline import Data
from ddlflow.store.folder import FolderStore

ROWS = 1503


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PIECE_ROWS", 100)
    monkeypatch.setattr(text, "RANGE_BYTES", 8000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 3000)


@pytest.fixture
def frame() -> pd.DataFrame:
    chance = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "y": chance.integers(0, 2, ROWS),
            "a": chance.normal(size=ROWS),
            "b": np.where(chance.random(ROWS) < 0.1, np.nan, chance.normal(size=ROWS)),
            "word": chance.choice(["one", "two", "a\nline", 'a "quote"'], ROWS),
        }
    )


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are parsed, in turn."""
    found: list[tuple[int, int]] = []
    batches = text.batches

    def told(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["extent"])
        return batches(*args, **kwargs)

    monkeypatch.setattr(text, "batches", told)
    return found


def _prepared(
    root: Path, name: str, *, kept: Path | None, cv: Cv | None = None, **spec: Any
) -> Manifest:
    data = Data(**({"source": "t.csv", "label": "y"} | spec))
    return prepare(
        data,
        "binary",
        data_root=root,
        folder=root / name,
        map=lambda function, items, _: map(function, items),
        cv=cv,
        converted=None if kept is None else FolderStore(kept),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _shards(folder: Path) -> dict[str, bytes]:
    shards = folder / "shards"
    return {str(path.relative_to(shards)): path.read_bytes() for path in _files(shards)}


def test_each_range_is_parsed_once_over_all_passes_and_nothing_of_it_stays(
    tmp_path: Path, frame: pd.DataFrame, parsed: list[tuple[int, int]]
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    cv = Cv(folds=3, by="word", kind="group")
    _prepared(tmp_path, "one", kept=None, cv=cv)
    assert len(parsed) == len(set(parsed)) > 4
    assert not (tmp_path / "one/work").exists()


def test_other_data_sets_of_the_same_source_parse_nothing(
    tmp_path: Path, frame: pd.DataFrame, parsed: list[tuple[int, int]]
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    kept = tmp_path / "kept"
    _prepared(tmp_path, "one", kept=kept)
    first = len(parsed)
    assert len(_files(kept)) == first > 4
    _prepared(tmp_path, "two", kept=kept, seed=9)
    _prepared(tmp_path, "three", kept=kept, features=["b"], derive={"c": "a * b"}, where="a > 0")
    assert len(parsed) == first
    _prepared(tmp_path, "apart", kept=None, seed=9)
    assert len(parsed) == 2 * first
    assert _shards(tmp_path / "two") == _shards(tmp_path / "apart")
    prepare(
        Data(source="t.csv", label="y", seed=9),
        "binary",
        data_root=tmp_path,
        folder=tmp_path / "fresh",
        map=lambda function, items, _: map(function, items),
        converted=FolderStore(kept),
        fresh=True,
    )
    assert len(parsed) == 3 * first
    assert _shards(tmp_path / "two") == _shards(tmp_path / "fresh")
    assert _shards(tmp_path / "two") != _shards(tmp_path / "one")


@pytest.mark.parametrize("lost", ["some", "all"])
def test_a_prepare_whose_kept_text_is_removed_meanwhile_ends_the_same(
    tmp_path: Path, frame: pd.DataFrame, lost: str
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    kept = tmp_path / "kept"
    wanted = _prepared(tmp_path, "wanted", kept=None)

    def forgetful(function: Any, items: list[Any], name: str) -> Any:
        if name == "write":
            for path in _files(kept)[:: 2 if lost == "some" else 1]:
                path.unlink()
        return map(function, items)

    found = prepare(
        Data(source="t.csv", label="y"),
        "binary",
        data_root=tmp_path,
        folder=tmp_path / "found",
        map=forgetful,
        converted=FolderStore(kept),
    )
    assert found.digest == wanted.digest
    assert _shards(tmp_path / "found") == _shards(tmp_path / "wanted")


def test_a_source_that_is_refused_leaves_nothing(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.assign(y=1).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="has one class alone"):
        _prepared(tmp_path, "one", kept=tmp_path / "kept")
    assert [path.name for path in _files(tmp_path)] == ["t.csv"]


def test_source_and_test_source_are_kept_apart(
    tmp_path: Path, frame: pd.DataFrame, parsed: list[tuple[int, int]]
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.head(300).to_csv(tmp_path / "u.csv", index=False)
    kept = tmp_path / "kept"
    split = {"validation": 0.1, "test": 0.0}
    for seed, name in enumerate(("one", "two")):
        found = _prepared(tmp_path, name, kept=kept, test_source="u.csv", split=split, seed=seed)
        assert found.rows("test") == 300
    assert len(parsed) == len(_files(kept))
    assert len(list(kept.iterdir())) == 2
