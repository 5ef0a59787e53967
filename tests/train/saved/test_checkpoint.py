"""Checkpoints: whole or not there, trusted by their hash alone, and the newest whole one counts."""

import hashlib
import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.errors import CheckpointError
from ddlflow.store.files import temporary_for
from ddlflow.store.owner import this_owner
from ddlflow.train.saved import checkpoint
from ddlflow.train.saved.checkpoint import MAGIC, files, latest, read, write


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {"step": step, "weights": {"a": torch.full((size,), float(step))}, "history": [{"x": 1}]}


def steps_kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(name) for name in files(folder)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    name = write(tmp_path / "new", 12, state(12))
    found = read(tmp_path / "new", name).state
    assert found["step"] == 12
    assert found["history"] == [{"x": 1}]
    assert torch.equal(found["weights"]["a"], torch.full((10,), 12.0))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "not there") is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 99, 100, 1_000_000):
        write(tmp_path, step, state(step))
    assert steps_kept(tmp_path) == [100, 1_000_000]
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 1_000_000


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a flipped bit":
        content[-20] ^= 1
    elif how == "cut off":
        content = content[: len(content) // 2]
    elif how == "no payload":
        content = content[: content.index(b"\n") + 1]
    elif how == "empty":
        content.clear()
    elif how == "foreign":
        content = bytearray(b"PK\x03\x04 something else")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "no payload", "empty", "foreign"])
def test_a_damaged_one_falls_back_to_the_one_before_and_is_named(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        path = tmp_path / write(tmp_path, step, state(step))
    damage(path, how)
    with pytest.raises(CheckpointError, match=path.name):
        read(tmp_path, path.name)
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 1
    assert path.name in caplog.text
    damage(tmp_path / files(tmp_path)[0], how)
    assert latest(tmp_path) is None


def test_a_training_that_went_back_leaves_the_damaged_ones_behind(tmp_path: Path) -> None:
    """Else those of later steps would push out what is written now."""
    for step in (50, 100):
        write(tmp_path, step, state(step), attempt=1)
    for name in files(tmp_path):
        damage(tmp_path / name, "cut off")
    write(tmp_path, 30, state(30), attempt=2)
    write(tmp_path, 40, state(40), attempt=2)
    assert steps_kept(tmp_path) == [30, 40]
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 40


class Code:
    """What must never be run by reading a checkpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_file_with_a_pickled_object_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"net": Code()}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    path = tmp_path / checkpoint.file_name(0, 7)
    path.write_bytes(MAGIC + digest + b"\n" + payload)
    with pytest.raises(CheckpointError, match="something else than tensors"):
        read(tmp_path, path.name)
    assert latest(tmp_path) is None
    assert not Path("ran").exists()


def test_a_full_disk_leaves_what_stood_before(
    tmp_path: Path, files_of_at_most: Callable[[int], Any]
) -> None:
    write(tmp_path, 1, state(1))
    with files_of_at_most(10_000), pytest.raises(CheckpointError, match="cannot be written: File"):
        write(tmp_path, 2, state(2, size=100_000))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.file_name(0, 1)]
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 1


def test_a_write_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    lost = replace(this_owner(), pid=gone.pid)
    gone.wait()
    left = tmp_path / f".attempt-000000-step-000000000005.ckpt.{lost.name}.{'0' * 32}.tmp"
    left.write_bytes(b"half a checkpo")
    assert latest(tmp_path) is None
    write(tmp_path, 6, state(6))
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="step-000000000001"):
        write(tmp_path / "file" / "in it", 1, state(1))


def test_two_writers_at_once_never_remove_what_the_later_attempt_wrote(tmp_path: Path) -> None:
    """The one that was cut off is ahead in steps: it took the same way before it slept."""
    write(tmp_path, 60, state(60), attempt=1)
    write(tmp_path, 70, state(70), attempt=1)
    write(tmp_path, 20, state(20), attempt=2)
    write(tmp_path, 80, state(80), attempt=1)
    write(tmp_path, 90, state(90), attempt=1)
    assert (tmp_path / checkpoint.file_name(2, 20)).exists()
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 20
    write(tmp_path, 30, state(30), attempt=2)
    write(tmp_path, 40, state(40), attempt=2)
    assert steps_kept(tmp_path) == [30, 40]


def test_the_half_written_file_of_a_later_attempt_is_left_alone(tmp_path: Path) -> None:
    later = temporary_for(tmp_path / checkpoint.file_name(2, 1))
    later.write_bytes(b"half")
    for step in (5, 6, 7):
        write(tmp_path, step, state(step), attempt=1)
    assert later.exists()
