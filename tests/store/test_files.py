"""Whole files or none."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import half_written

from ddlflow.errors import DdlflowError, InputError
from ddlflow.store import documents, files, owner
from ddlflow.store.files import remove_leftovers, replacing, temporary_for
from ddlflow.store.store import open_store


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    documents.save(open_store(tmp_path), "x.json", {"a": 1})

    def half_written() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DdlflowError, match="No space left") as caught:
        half_written()
    assert not isinstance(caught.value, InputError)
    assert documents.load(open_store(tmp_path), "x.json") == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        documents.save(open_store(tmp_path / "file"), "x.json", 1)


@pytest.mark.parametrize("text", [None, "", '{"a": '])
def test_load_of_no_whole_file_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert documents.load(open_store(tmp_path), "x.json") is None


def test_what_the_dead_left_goes_and_what_may_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    ours = owner.this_owner()
    living = temporary_for(path)
    monkeypatch.setattr(files, "this_owner", lambda: replace(ours, boot="elsewhere"))
    written, silent = temporary_for(path), temporary_for(path)
    monkeypatch.undo()
    for file in (living, written, silent):
        file.write_text("half")
    then = time.time() - owner.SILENT_S - 60
    os.utime(silent, (then, then))
    dead = half_written(path)
    folder = half_written(tmp_path / "model")
    folder.unlink()
    folder.mkdir()
    (folder / "weights.pt").touch()
    others = [tmp_path / name for name in ("x.tmp", ".x.tmp", ".x.77.tmp")]
    for file in others:
        file.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, written, *others])
    assert not silent.exists()
    assert not dead.exists()
    assert not folder.exists()
