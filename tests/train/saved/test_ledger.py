"""The ledgers of attempts of any world, stopped anywhere, add up; tampered ones do not."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddlflow.data.shards.batches import mark
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import DataError
from ddlflow.history.artifacts import training_of
from ddlflow.history.audit import Audit, audit_ledgers
from ddlflow.train import training
from ddlflow.train.job import Job
from ddlflow.train.loop import Stopped
from ddlflow.train.parallel.agreement import Ranks
from ddlflow.train.saved.export import rows_mark
from ddlflow.train.saved.ledger import HEADER, RECORD, read

EPOCHS = 4


def attempt(job: Job, name: str, stop_after: int | None = None) -> Any:
    """One attempt in this process; None if it was stopped."""
    asked = itertools.count()
    must_stop = (lambda: next(asked) >= stop_after) if stop_after is not None else (lambda: False)
    try:
        return training.run(
            replace(job, attempt=name),
            0,
            1,
            None,
            torch.device("cpu"),
            tell=lambda event: None,
            must_stop=must_stop,
        )
    except Stopped:
        return None


def trained(bench: Any, folder: Path, *, stops: list[int]) -> tuple[Job, Audit]:
    """A training that was stopped so often, and its audit."""
    job = bench().job(folder, epochs=EPOCHS, batch_rows=64, virtual_ranks=2, digest_every=1)
    result = None
    for number, stop_after in enumerate([*stops, None]):
        result = attempt(job, f"{number}", stop_after)
    assert result is not None
    return job, audit_ledgers("a run", Path(job.ledgers.location), result)


def test_an_undisturbed_training(bench: Callable[..., Any], tmp_path: Path) -> None:
    _, found = trained(bench, tmp_path, stops=[])
    assert not found.faults
    (only,) = found.attempts
    assert (only.first, only.steps, only.kept) == ((1, 1), found.steps, found.steps)
    assert only.last == (EPOCHS, found.steps // EPOCHS)


@pytest.mark.parametrize("seed", range(6))
def test_attempts_that_were_stopped_anywhere_add_up(
    seed: int, bench: Callable[..., Any], tmp_path: Path
) -> None:
    chance = random.Random(seed)
    stops = [chance.randint(0, 8) for _ in range(chance.randint(1, 4))]
    _, found = trained(bench, tmp_path, stops=stops)
    assert not found.faults
    assert len(found.attempts) == len(stops) + 1
    assert sum(attempt.kept for attempt in found.attempts) == found.steps


@pytest.mark.parametrize("determinism", ["world", "off"])
def test_a_training_that_lost_ranks_has_each_row_once(
    determinism: str, bench: Callable[..., Any], tmp_path: Path
) -> None:
    """One rank goes on with what three had: the lanes stay, though the bits may not."""
    job = bench().job(
        tmp_path,
        epochs=EPOCHS,
        batch_rows=50,
        virtual_ranks=3,
        digest_every=1,
        determinism=determinism,
    )
    assert attempt(job, "0", 7) is None
    result = attempt(job, "1")
    found = audit_ledgers("a run", Path(job.ledgers.location), result)
    assert not found.faults
    assert 0 < found.attempts[0].kept < found.steps // EPOCHS  # stopped inside an epoch


def test_a_later_attempt_that_does_steps_again_counts_for_them(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    job = bench().job(tmp_path, epochs=EPOCHS, batch_rows=64, digest_every=1)
    attempt(job, "0", stop_after=5)
    for checkpoint in Path(job.checkpoints.location).glob("*"):
        checkpoint.unlink()  # as if it had not been written yet
    found = audit_ledgers("a run", Path(job.ledgers.location), attempt(job, "1"))
    assert not found.faults
    assert [(a.steps > 0, a.kept) for a in found.attempts] == [(True, 0), (True, found.steps)]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("mark", "some twice and some never"),
        ("rows", "rows entered a batch"),
        ("count", "no rank recorded it"),
        ("rank", "1 of 2 ranks recorded it"),
    ],
)
def test_what_does_not_add_up_is_named(
    harm: str, said: str, bench: Callable[..., Any], tmp_path: Path
) -> None:
    job, _ = trained(bench, tmp_path, stops=[])
    (path,) = Path(job.ledgers.location).glob("*.ledger")
    data = bytearray(path.read_bytes())
    at = HEADER + 3 * RECORD.itemsize
    if harm == "mark":
        data[at + RECORD.fields["mark"][1]] ^= 1
    elif harm == "rows":
        data[at + RECORD.fields["rows"][1]] ^= 1
    elif harm == "count":
        data[0] -= 1
    else:
        path.unlink()
        path = path.with_name("0-0-of-2.ledger")
    path.write_bytes(data)
    result = training_of(json.loads(job.model_folder.read("train.json")), "train.json")
    faults = audit_ledgers("a run", Path(job.ledgers.location), result).faults
    assert faults
    assert said in faults[0]


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "0-0-of-1.ledger").write_bytes(b"\xff" * 70)
    with pytest.raises(DataError, match=r"0-0-of-1\.ledger is damaged"):
        list(read(tmp_path))


def test_a_ledger_that_a_full_disk_cut_short_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "0-1-of-2.ledger").write_bytes(b"")
    (entry,) = read(tmp_path)
    assert (entry.attempt, entry.rank, entry.world, len(entry.records)) == ("0", 1, 2, 0)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_mark_all_rows_together(
    bench: Callable[..., Any], ranks: Callable[..., Any], world: int
) -> None:
    """What one alone says of all of them."""
    here = bench()
    files = ShardFiles.in_folder(here.dataset, here.manifest.shards_of("train"))
    numbers = [map_shard(here.dataset / shard.path)["row"] for shard in files.shards]
    (wanted,) = mark(np.concatenate(numbers).reshape(1, -1)).tolist()

    def of(rank: int, group: Any) -> int:
        together = Ranks(rank, world, group, torch.device("cpu"))
        return rows_mark(Rows(files, None), rank, world, together.gathered)

    assert ranks(world, of) == [wanted] * world
    assert rows_mark(Rows(files, None), 0, 1, lambda numbers: [list(numbers)]) == wanted
