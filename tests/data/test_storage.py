"""Whole files or none."""

import errno
import os
from pathlib import Path

import pytest

from ddlflow.data.storage import load_json, replacing, save_json
from ddlflow.errors import DdlflowError, InputError


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save_json(path, {"a": 1})

    def half_written() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DdlflowError, match="No space left") as caught:
        half_written()
    assert not isinstance(caught.value, InputError)
    assert load_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_json(tmp_path / "file" / "x.json", 1)


@pytest.mark.parametrize("text", [None, "", '{"a": '])
def test_load_of_no_whole_file_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert load_json(tmp_path / "x.json") is None
