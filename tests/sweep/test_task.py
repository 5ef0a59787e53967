"""What a worker does with a piece: to rungs and to its end, once, and after deaths."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ddlflow.errors import CheckpointError
from ddlflow.sweep.member_result import MemberResult
from ddlflow.sweep.place import PlainMember, Where, member_of, plain
from ddlflow.sweep.task import Asynchronous, PieceTask, apart, train_piece

EPOCHS = 4


@pytest.fixture
def where(ground: Callable[..., Any]) -> Where:
    return Where(str(ground().prepared.folder), None, "cpu", 1)


@pytest.fixture
def piece(ground: Callable[..., Any], where: Where, tmp_path: Path) -> Callable[..., PieceTask]:
    """A piece of members that differ in their learning rates: ``piece("0", "1")``."""

    def make(*ids: str, **train: Any) -> PieceTask:
        members = []
        for id_ in ids:
            optimizer = {"use": "adam", "lr": 0.01 / (1 + int(id_))}
            given = {"epochs": EPOCHS, "optimizer": optimizer} | train
            members.append(plain(ground().member(id_, **given)))
        fused = len(ids) > 1
        return PieceTask(where, str(tmp_path / "piece"), 0, tuple(members), fused, "", driver="d")

    return make


def but_times(results: list[MemberResult]) -> list[MemberResult]:
    return [
        replace(
            one,
            seconds=0.0,
            history=[{k: v for k, v in row.items() if k != "rows_per_s"} for row in one.history],
        )
        for one in results
    ]


def files(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_members_are_plain_values_and_back(ground: Callable[..., Any]) -> None:
    member = ground().member("3/1", fold=1, epochs=7)
    assert member_of(PlainMember(**json.loads(json.dumps(asdict(plain(member)))))) == member


@pytest.mark.parametrize("ids", [("0",), ("0", "1")], ids=["apart", "stack"])
def test_rung_by_rung_is_as_at_once_and_nothing_is_done_twice(
    piece: Callable[..., PieceTask], tmp_path: Path, ids: tuple[str, ...]
) -> None:
    whole = train_piece(replace(piece(*ids), folder=str(tmp_path / "whole")))
    assert [one.status for one in whole] == ["done"] * len(ids)
    assert [len(one.history) for one in whole] == [EPOCHS] * len(ids)
    task, folder = piece(*ids), tmp_path / "piece"
    first = train_piece(replace(task, until=1))
    second = train_piece(replace(task, until=3))
    assert [(one.status, len(one.history)) for one in first + second] == (
        [("going", 1)] * len(ids) + [("going", 3)] * len(ids)
    )
    for early, late in zip(first, second, strict=True):
        assert 0 < early.seconds < late.seconds  # of all that it took so far
    last = train_piece(task)
    assert but_times(last) == but_times(whole)
    known = files(folder)
    assert known.keys() == {"end.json", "epoch-1.json", "epoch-3.json"}  # no checkpoint stays
    # A search that goes on asks again: it is told what it was told at each rung, and no more.
    assert train_piece(replace(task, until=1)) == first
    assert train_piece(replace(task, until=3)) == second
    assert train_piece(task) == last
    assert files(folder) == known


def test_a_worker_lost_at_a_rung_goes_on_from_the_one_before(
    piece: Callable[..., PieceTask], tmp_path: Path
) -> None:
    task, folder = piece("0", "1"), tmp_path / "piece"
    train_piece(replace(task, until=2))
    kept = shutil.copytree(folder, tmp_path / "kept")
    whole = train_piece(task)
    shutil.rmtree(folder)
    kept.rename(folder)
    (folder / "end.tries").write_text('{"driver":"d","tried":1}')  # the first try's mark
    assert but_times(train_piece(task)) == but_times(whole)
    assert "end.tries" not in files(folder)


def test_members_that_are_dropped_leave_and_the_others_go_on(
    piece: Callable[..., PieceTask],
) -> None:
    task = piece("0", "1")
    train_piece(replace(task, until=1))
    one, other = sorted(train_piece(replace(task, dropped=("0",))), key=lambda r: r.id)
    assert (one.status, len(one.history)) == ("pruned", 1)
    assert one.reason == "it was not among the best of its rung"
    assert (other.status, len(other.history)) == ("done", EPOCHS)


def test_one_that_ended_before_its_rung_is_not_trained_again(
    piece: Callable[..., PieceTask], tmp_path: Path
) -> None:
    task = piece("0", optimizer={"use": "sgd", "lr": 1e38})
    (found,) = train_piece(replace(task, until=2))
    assert found.status == "failed"
    assert "Lower train.optimizer.lr" in found.reason
    known = files(tmp_path / "piece")
    assert known.keys() == {"end.json"}
    assert train_piece(task) == train_piece(replace(task, until=3)) == [found]
    assert files(tmp_path / "piece") == known


# ---- deaths -------------------------------------------------------------------------------


def test_what_kills_its_worker_three_times_is_failed(
    piece: Callable[..., PieceTask], tmp_path: Path
) -> None:
    (tmp_path / "piece").mkdir()
    tries = tmp_path / "piece" / "end.tries"
    tries.write_text('{"driver":"d","tried":3}')
    (found,) = train_piece(piece("0"))
    assert (found.status, found.history) == ("failed", [])
    assert found.reason == "Its worker died 3 times while it was trained: out of memory?"
    assert not tries.exists()


def test_deaths_of_drivers_do_not_count(piece: Callable[..., PieceTask], tmp_path: Path) -> None:
    """A search that was stopped many times in the same piece trains it all the same."""
    (tmp_path / "piece").mkdir()
    (tmp_path / "piece" / "end.tries").write_text('{"driver":"another","tried":3}')
    (found,) = train_piece(piece("0"))
    assert found.status == "done"


def test_members_of_a_stack_that_kills_its_worker_are_given_apart(
    piece: Callable[..., PieceTask], tmp_path: Path
) -> None:
    task, folder = piece("0", "1"), tmp_path / "piece"
    folder.mkdir()
    (folder / "end.tries").write_text('{"driver":"d","tried":2}')
    found = train_piece(task)
    assert [(one.id, one.status) for one in found] == [("0", "apart"), ("1", "apart")]
    assert train_piece(replace(task, driver="next")) == found  # it is not tried again
    alone = apart(task, "1")
    assert (alone.fused, alone.folder) == (False, str(folder / "apart-1"))
    (one,) = train_piece(alone)
    assert (one.id, one.status, one.fused) == ("1", "done", 1)


def test_a_full_disk_fails_no_member(piece: Callable[..., PieceTask], tmp_path: Path) -> None:
    task = piece("0")
    (tmp_path / "piece").mkdir()
    (tmp_path / "piece" / "checkpoints").write_text("no folder")
    with pytest.raises(CheckpointError, match="cannot be written"):
        train_piece(replace(task, until=1))
    assert "epoch-1.json" not in files(tmp_path / "piece")


# ---- async_halving ------------------------------------------------------------------------


def test_each_decides_by_those_before_it(piece: Callable[..., PieceTask], tmp_path: Path) -> None:
    rule = Asynchronous(str(tmp_path / "rungs"), (1, EPOCHS), 2, "loss", "lower")
    task = replace(piece("0"), alone=rule)
    (first,) = train_piece(task)
    assert first.status == "done"  # nobody was before it
    rung = tmp_path / "rungs" / "1"
    assert json.loads((rung / "0.json").read_text()) == {"score": first.history[0]["val_loss"]}
    (rung / "8.json").write_text('{"score":0.0}')
    (rung / "9.json").write_text('{"score":null}')  # one that had none
    late = replace(piece("1"), alone=rule, folder=str(tmp_path / "late"))
    (second,) = train_piece(late)
    assert (second.status, len(second.history)) == ("pruned", 1)


def test_a_score_that_is_none_ends_it(
    piece: Callable[..., PieceTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An AUROC of one class, a loss beyond float32: JSON has no word for them."""
    from ddlflow.train import validation

    plain = validation.Validation.__call__
    monkeypatch.setattr(
        validation.Validation,
        "__call__",
        lambda self: plain(self) | {"auroc": float("nan")},
    )
    rule = Asynchronous(str(tmp_path / "rungs"), (1, EPOCHS), 2, "auroc", "higher")
    (found,) = train_piece(replace(piece("0"), alone=rule))
    assert (found.status, len(found.history)) == ("pruned", 1)
    assert found.history[0]["val_auroc"] is None
