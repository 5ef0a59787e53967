"""One decides, all agree: unlike views of one folder, damaged files, ranks that part."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddlflow.errors import CheckpointError, TrainingError
from ddlflow.train.parallel.agreement import Ranks, compare, resumed
from ddlflow.train.saved import checkpoint, fence
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.state import State

CPU = torch.device("cpu")
Run = Callable[..., list[Any]]


def folder(path: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint.write(path, step, {"step": step}, attempt=1)
    return path


def views(tmp_path: Path, run: Run, *folders: Path, patience_s: float = 0.5) -> list[Any]:
    """The step that each rank goes on from, where each has a folder of its own."""
    del tmp_path

    def one(rank: int, group: Any) -> Any:
        ranks = Ranks(rank, len(folders), group, CPU)
        found = resumed(folders[rank], ranks, lambda text: None, patience_s=patience_s)
        return found and found["step"]

    return list(run(len(folders), one))


def test_ranks_that_see_the_same_go_on_from_the_same(tmp_path: Path, ranks: Run) -> None:
    shared = folder(tmp_path / "c", 5, 9)
    assert views(tmp_path, ranks, shared, shared, shared) == [9, 9, 9]
    empty = tmp_path / "none"
    assert views(tmp_path, ranks, empty, empty) == [None, None]


def test_a_rank_that_sees_more_than_rank_0_goes_on_from_what_rank_0_sees(
    tmp_path: Path, ranks: Run
) -> None:
    less, more = folder(tmp_path / "0", 5), folder(tmp_path / "1", 5, 9)
    assert views(tmp_path, ranks, less, more) == [5, 5]
    assert views(tmp_path, ranks, tmp_path / "none", more) == [None, None]


def test_a_rank_waits_for_what_it_does_not_see_yet(tmp_path: Path, ranks: Run) -> None:
    whole, late = folder(tmp_path / "0", 5, 9), folder(tmp_path / "1", 5)

    def appear() -> None:
        time.sleep(0.5)
        shutil.copy(whole / checkpoint.files(whole)[-1], late)

    thread = threading.Thread(target=appear)
    thread.start()
    assert views(tmp_path, ranks, whole, late, patience_s=30) == [9, 9]
    thread.join()


def test_a_rank_that_never_sees_it_says_so(tmp_path: Path, ranks: Run) -> None:
    whole, late = folder(tmp_path / "0", 5, 9), folder(tmp_path / "1", 5)
    with pytest.raises(CheckpointError) as caught:
        views(tmp_path, ranks, whole, late)
    name = checkpoint.file_name(1, 9)
    assert str(caught.value) == (
        f"Rank 1 cannot go on from where rank 0 does: checkpoint {late / name} cannot be read: No "
        "such file or directory. It tried for 0.5 s. Every worker has to see the same storage: "
        "look at that file, and at what is mounted, on this rank's host; then the same command "
        "goes on."
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_bytes_that_one_rank_reads_wrongly_are_never_trained_on(tmp_path: Path, ranks: Run) -> None:
    good, bad = folder(tmp_path / "0", 5, 9), folder(tmp_path / "1", 5, 9)
    flip(bad / checkpoint.files(bad)[-1])
    with pytest.raises(CheckpointError, match=r"Rank 1 .* is damaged"):
        views(tmp_path, ranks, good, bad)
    assert views(tmp_path, ranks, bad, good) == [5, 5]


def test_a_whole_file_of_that_name_with_other_bytes_is_not_it(tmp_path: Path, ranks: Run) -> None:
    good, other = folder(tmp_path / "0", 5), tmp_path / "1"
    checkpoint.write(other, 5, {"step": 5, "of": "another training"}, attempt=1)
    with pytest.raises(CheckpointError, match="something else than what rank 0 read"):
        views(tmp_path, ranks, good, other)


def test_rank_0_waits_for_a_checkpoint_that_is_known_to_be_written(tmp_path: Path) -> None:
    alone = Ranks(0, 1, None, CPU)
    said: list[str] = []
    late = folder(tmp_path / "c", 5)
    found = resumed(late, alone, said.append, at_least=9, patience_s=0.3)
    assert found == {"step": 5}
    assert said == [
        f"The checkpoint of step 9 was written, and is not to be seen in {late} after 0.3 s. The "
        "newest that is seen there is used."
    ]
    thread = threading.Timer(0.5, folder, (late, 9))
    thread.start()
    assert resumed(late, alone, said.append, at_least=9, patience_s=30) == {"step": 9}
    thread.join()
    assert len(said) == 1


# ---- alike ---------------------------------------------------------------------------------


def parted(run: Run, world: int, with_digests: bool = True, **of_rank_1: Any) -> list[str]:
    """What each rank says where rank 1 has other weights, or is at another step."""
    said = [""] * world

    def one(rank: int, group: Any) -> None:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        state = State(net, torch.optim.SGD(net.parameters(), lr=1.0), epoch=1, step=4, steps=14)
        for name, value in of_rank_1.items() if rank == 1 else ():
            if name == "weight":
                net.weight.data[0, 0] = value
            else:
                setattr(state, name, value)
        ranks = Ranks(rank, world, group, CPU)
        try:
            compare(state, digest(net), ranks=ranks, with_digests=with_digests)
        except TrainingError as error:
            said[rank] = str(error)

    run(world, one)
    return said


def test_ranks_that_are_alike_go_on(ranks: Run) -> None:
    assert parted(ranks, 3) == ["", "", ""]
    alone = Ranks(0, 1, None, CPU)
    compare(State(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)])), "", ranks=alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": 1e-30}, r"rank 1 is at epoch 2, step 4 \(14 in all\) with weights \w{12}"),
        ({"step": 3}, r"rank 1 is at epoch 2, step 3 \(14 in all\) with weights \w{12}"),
        ({"epoch": 0}, r"rank 1 is at epoch 1, step 4"),
    ],
)
def test_ranks_that_have_parted_all_stop_with_the_same_words(
    ranks: Run, change: dict[str, Any], words: str
) -> None:
    said = parted(ranks, 3, **change)
    assert len(set(said)) == 1
    assert "ranks 0, 2 are at epoch 2, step 4" in said[0]
    with pytest.raises(TrainingError, match=words):
        raise TrainingError(said[0])


def test_without_a_promise_of_last_bits_only_the_step_counts(ranks: Run) -> None:
    assert parted(ranks, 2, with_digests=False, weight=1e-30) == ["", ""]
    assert all(parted(ranks, 2, with_digests=False, steps=15))


# ---- whole trainings -----------------------------------------------------------------------

SHORT = {"epochs": 4, "digest_every": 1, "checkpoint_every_s": 1e-6, "virtual_ranks": 2}


def test_an_attempt_that_was_cut_off_ends_and_leaves_the_model_to_the_next(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    made = bench()
    asked = 0

    def must_stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            fence.claim(tmp_path / "checkpoints")  # as the next attempt does, elsewhere
        return False

    with pytest.raises(CheckpointError, match="another attempt of the training"):
        made.train(tmp_path, must_stop=must_stop, **SHORT)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("determinism", ["elastic", "world"])
def test_weights_that_begin_unlike_are_not_trained_on(
    bench: Callable[..., Any], tmp_path: Path, ranks: Run, determinism: str
) -> None:
    """Randomness that no seed sets: each rank would train a model of its own."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "random_of_test_agreement.py").write_text(
        "import os, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_features):\n"
        "        super().__init__(num_features, 1)\n"
        "        self.weight.data.fill_(int.from_bytes(os.urandom(3), 'big') / 1e7)\n"
        "    def forward(self, x):\n"
        "        return super().forward(x).squeeze(1)\n"
    )
    more = {
        "code": tmp_path / "code",
        "model": {"use": "random_of_test_agreement:Net"},
        "determinism": determinism,
    }
    if determinism == "elastic":
        more["virtual_ranks"] = 2

    def one(rank: int, group: Any) -> str:
        try:
            bench().train(tmp_path / "t", rank=rank, world=2, group=group, **more)
        except TrainingError as error:
            return str(error)
        return ""

    said = ranks(2, one)
    assert said[0] == said[1]
    assert said[0].startswith("The ranks are not alike any more: rank 0 is at epoch 1, step 0")
