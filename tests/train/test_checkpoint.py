"""Checkpoints: whole or not there, trusted by their hash alone, and the newest whole one counts."""

import hashlib
import io
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.errors import CheckpointError
from ddlflow.train import checkpoint
from ddlflow.train.checkpoint import MAGIC, Writer, files, latest, read, write


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {"step": step, "weights": {"a": torch.full((size,), float(step))}, "history": [{"x": 1}]}


def steps_kept(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in files(folder)]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk is like: the kernel refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new", 12, state(12))
    found = read(path)
    assert found["step"] == 12
    assert found["history"] == [{"x": 1}]
    assert torch.equal(found["weights"]["a"], torch.full((10,), 12.0))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [path.name]


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
        path = write(tmp_path, step, state(step))
    damage(path, how)
    with pytest.raises(CheckpointError, match=path.name):
        read(path)
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 1
    assert path.name in caplog.text
    damage(files(tmp_path)[0], how)
    assert latest(tmp_path) is None


def test_a_training_that_went_back_leaves_the_damaged_ones_behind(tmp_path: Path) -> None:
    """Else those of later steps would push out what is written now."""
    for step in (50, 100):
        write(tmp_path, step, state(step))
    for path in files(tmp_path):
        damage(path, "cut off")
    write(tmp_path, 30, state(30))
    write(tmp_path, 40, state(40))
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
    path = tmp_path / "step-000000000007.ckpt"
    path.write_bytes(MAGIC + digest + b"\n" + payload)
    with pytest.raises(CheckpointError, match="something else than tensors"):
        read(path)
    assert latest(tmp_path) is None
    assert not Path("ran").exists()


def test_a_full_disk_leaves_what_stood_before(tmp_path: Path) -> None:
    write(tmp_path, 1, state(1))
    with files_of_at_most(10_000), pytest.raises(CheckpointError, match="cannot be written: File"):
        write(tmp_path, 2, state(2, size=100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.ckpt"]
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 1


def test_a_write_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    left = tmp_path / "step-000000000005.tmp"
    left.write_bytes(b"half a checkpo")
    assert latest(tmp_path) is None
    write(tmp_path, 6, state(6))
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="step-000000000001"):
        write(tmp_path / "file" / "in it", 1, state(1))


class TestWriter:
    """The thread that writes while the training goes on."""

    def test_a_newer_state_replaces_one_that_waits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began, go_on, written = threading.Event(), threading.Event(), []

        def slow(folder: Path, step: int, state: dict[str, Any]) -> None:
            began.set()
            assert go_on.wait(30)
            written.append(step)

        monkeypatch.setattr(checkpoint, "write", slow)
        writer = Writer(tmp_path)
        writer.put(1, state(1))
        assert began.wait(30)
        for step in (2, 3, 4):  # returns at once, though the disk is slow
            writer.put(step, state(step))
        go_on.set()
        writer.close()
        assert written == [1, 4]

    def test_closing_waits_for_the_newest(self, tmp_path: Path) -> None:
        writer = Writer(tmp_path)
        for step in range(1, 30):
            writer.put(step, state(step))
        writer.close()
        found = latest(tmp_path)
        assert found is not None
        assert found["step"] == 29

    def test_a_full_disk_is_told_once_and_the_next_one_tried(self, tmp_path: Path) -> None:
        said: list[str] = []
        writer = Writer(tmp_path, said.append)
        with files_of_at_most(10_000):
            writer.put(1, state(1, size=100_000))
            while not said:
                assert threading.active_count() > 1
        writer.put(2, state(2))
        writer.close()
        assert steps_kept(tmp_path) == [2]
        assert re.fullmatch(
            r"checkpoint .*step-000000000001\.ckpt cannot be written: File too large\. "
            r"The training goes on without it, and tries again\.",
            said[0],
        )
        assert said[1:] == ["Checkpoints can be written again."]

    def test_closing_without_a_state_writes_nothing(self, tmp_path: Path) -> None:
        Writer(tmp_path / "new").close()
        assert not (tmp_path / "new").exists()
