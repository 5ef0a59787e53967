"""The thread that writes checkpoints while the training goes on, and who may write at all."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.errors import CheckpointError
from ddlflow.train.saved import checkpoint, fence
from ddlflow.train.saved.checkpoint import files, latest
from ddlflow.train.saved.writer import Writer


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((size,), float(step))}


def steps_kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in files(folder)]


def test_a_newer_state_replaces_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, written = threading.Event(), threading.Event(), []

    def slow(folder: Path, step: int, state: dict[str, Any], attempt: int) -> None:
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


def test_closing_waits_for_the_newest(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in range(1, 30):
        writer.put(step, state(step))
    writer.close()
    found = latest(tmp_path)
    assert found is not None
    assert found["step"] == 29


def test_a_full_disk_is_told_once_and_the_next_one_tried(
    tmp_path: Path, files_of_at_most: Callable[[int], Any]
) -> None:
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
        r"checkpoint .*-step-000000000001\.ckpt cannot be written: File too large\. "
        r"The training goes on without it, and tries again\.",
        said[0],
    )
    assert said[1:] == ["Checkpoints can be written again."]


def test_closing_without_a_state_writes_nothing(tmp_path: Path) -> None:
    Writer(tmp_path / "new").close()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "wrong", [threading.Lock(), torch.empty(2, device="meta")], ids=["lock", "meta"]
)
def test_whatever_is_wrong_with_a_state_the_next_one_is_tried(tmp_path: Path, wrong: Any) -> None:
    """Neither a lock nor a tensor without numbers can be saved: torch's errors, not the disk's."""
    said: list[str] = []
    writer = Writer(tmp_path, said.append)
    writer.put(1, {"wrong": _Unsaved(wrong)})
    while not said:
        assert threading.active_count() > 1
    writer.put(2, state(2))
    writer.close()
    assert steps_kept(tmp_path) == [2]
    assert re.fullmatch(
        r"A checkpoint cannot be written: \w+: .+\. The training goes on without it, and tries "
        r"again\.",
        said[0],
    )
    assert said[1:] == ["Checkpoints can be written again."]


class _Unsaved:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> Any:
        raise MemoryError("no room for a copy")


def test_closing_says_that_the_last_state_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tried: list[str] = []
    writer = Writer(tmp_path / "file" / "in it", tried.append)
    writer.put(3, state(3))
    with pytest.raises(CheckpointError, match="cannot be written"):
        writer.close()


def test_the_last_state_is_tried_again_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "checkpoints").touch()  # a file where the folder should be
    writer = Writer(tmp_path / "checkpoints", said.append)
    writer.put(3, state(3))
    while not said:
        assert threading.active_count() > 1
    (tmp_path / "checkpoints").unlink()
    writer.close()
    assert steps_kept(tmp_path / "checkpoints") == [3]


def test_each_saved_step_is_told_of(tmp_path: Path) -> None:
    told: list[int] = []
    writer = Writer(tmp_path, on_saved=told.append)
    writer.put(4, state(4))
    writer.close()
    assert told == [4]


def test_attempts_that_begin_at_once_have_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: fence.claim(tmp_path / "c"), range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert fence.is_over(tmp_path / "c", 39)
    assert not fence.is_over(tmp_path / "c", 40)


def test_an_attempt_that_was_cut_off_writes_and_removes_nothing_and_ends(tmp_path: Path) -> None:
    said: list[str] = []
    first = Writer(tmp_path, said.append, attempt=fence.claim(tmp_path))
    first.put(10, state(10))
    while not files(tmp_path):
        assert threading.active_count() > 1
    second = Writer(tmp_path, said.append, attempt=fence.claim(tmp_path))
    first.put(50, state(50))  # it wakes up, and has gone on meanwhile
    with pytest.raises(CheckpointError, match=r"another attempt .* has begun"):
        first.close()
    with pytest.raises(CheckpointError, match=r"another attempt .* has begun"):
        first.put(60, state(60))
    second.put(20, state(20))
    second.close()
    assert steps_kept(tmp_path) == [10, 20]
    assert not said
