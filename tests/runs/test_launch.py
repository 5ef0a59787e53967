"""What is made of a gang's failure: whether to try again, and the words for the user."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddlflow.engines import Failure, GangEvent
from ddlflow.errors import DataError, EngineError, TrainingError
from ddlflow.rank_protocol import RankStarted
from ddlflow.report.screen import Screen
from ddlflow.runs.events import TrainEvent
from ddlflow.runs.failures import describe, error_of, is_final, is_same
from ddlflow.runs.launch import _each_epoch_once, _listener, _RunningAttempt
from ddlflow.runs.results import TrainAttempt
from ddlflow.spec.pipeline import MlpSection, Training
from ddlflow.train.events import EpochEnded, Noted, Resumed, to_said
from ddlflow.train.job import Job

NO_RANKS: Any = None
TRACE = """Traceback (most recent call last):
  File "/site/torch/module.py", line 1, in call
  File "{folder}/code/net.py", line 5, in forward
    x = self.deep(x)
  File "{folder}/code/parts/deep.py", line 14, in forward
    return x @ self.weight
  File "/site/torch/functional.py", line 7, in matmul
ValueError: no
"""


def failure(**more: Any) -> Failure:
    values = {
        "rank": 1,
        "host": "node-3",
        "step": 40,
        "kind": "ValueError",
        "message": "no",
        "traceback": "",
        "log": "logs/rank-1.log",
    }
    return Failure(**(values | more))


def job(folder: Path, code: str | None = "code") -> Job:
    made = str(folder / code) if code else None
    train = Training(objective="binary", epochs=1, batch_rows=32)
    model = MlpSection(use="mlp")
    return Job("data", str(folder), model, train, {}, "binary", 1, 1, "cpu", made)


def test_one_line_says_who_where_when_and_what() -> None:
    assert describe(failure()) == "rank 1 on node-3 after step 40: ValueError: no"
    assert describe(failure(step=None)) == "rank 1 on node-3: ValueError: no"
    assert describe(failure(message="", step=0)) == "rank 1 on node-3: ValueError"
    long = describe(failure(message="CUDA error\n  at line 3\n" + "x" * 900))
    assert long.startswith("rank 1 on node-3 after step 40: ValueError: CUDA error at line 3 xxx")
    assert long.endswith("x...")
    assert len(long) < 400


def test_a_note_of_any_rank_is_told() -> None:
    said = io.StringIO()
    session: Any = SimpleNamespace(screen=Screen(said))
    on_event = _listener(
        session, _RunningAttempt(1, 2), NO_RANKS, lambda event: None, lambda done, words: None
    )
    on_event(GangEvent(1, "node-3", RankStarted(7)))
    on_event(GangEvent(1, "node-3", to_said(Noted("There is no space."))))
    assert said.getvalue() == "train: There is no space.\n"


def test_epochs_of_which_nobody_heard_are_told_once_when_a_training_goes_on() -> None:
    """A driver that is killed may not have heard of an epoch that the checkpoint holds."""
    told: list[TrainEvent] = []
    session: Any = SimpleNamespace(screen=Screen(io.StringIO()))
    tell = _each_epoch_once(told.append)
    attempt = _RunningAttempt(1, 2)
    on_event = _listener(session, attempt, NO_RANKS, tell, lambda done, words: None)
    rows = [{"epoch": number, "loss": 1 / number} for number in (1, 2, 3)]
    for event in (
        EpochEnded(rows[0]),
        Resumed(58, rows[:2]),
        EpochEnded(rows[1]),  # done again
        EpochEnded(rows[2]),
    ):
        on_event(GangEvent(0, "a", to_said(event)))
    assert told == [EpochEnded(row) for row in rows]
    assert attempt.now == TrainAttempt(1, 2, from_step=58)


def test_an_error_of_ours_is_final_and_a_namesake_is_not() -> None:
    ours = failure(kind="DataError", traceback="ddlflow.errors.DataError: bad rows")
    theirs = failure(kind="DataError", traceback="sqlalchemy.exc.DataError: bad rows")
    assert is_final(ours)
    assert not is_final(theirs)
    assert not is_final(failure())
    found = error_of(
        failure(kind="DataError", traceback=ours.traceback, message="rows"), 1, job(Path("/f"))
    )
    assert isinstance(found, DataError)
    assert str(found) == "rows"
    assert isinstance(error_of(theirs, 1, job(Path("/f"))), TrainingError)


@pytest.mark.parametrize(
    "kind", ["Killed", "Exited", "WorkerLost", "Hung", "StartTimeout", "Stopped"]
)
def test_a_lost_rank_is_never_the_same_failure(kind: str) -> None:
    assert not is_same(failure(kind=kind), failure(kind=kind))


def test_the_same_failure_is_of_one_kind_message_and_step() -> None:
    assert is_same(failure(), failure(rank=0, host="other", log="x"))
    assert not is_same(failure(), None)
    for change in ({"kind": "KeyError"}, {"message": "yes"}, {"step": 41}):
        assert not is_same(failure(**change), failure())


def test_user_code_is_named_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "real" / "code").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for given in ("real", "link"):  # Python names the file behind a link
        trace = TRACE.format(folder=tmp_path / "real")
        error = error_of(failure(traceback=trace), 2, job(tmp_path / given))
        assert str(error) == (
            "The training failed after 2 attempts: rank 1 on node-3 after step 40: ValueError: no "
            "(parts/deep.py:14 in forward). Log: logs/rank-1.log. Correct parts/deep.py."
        )
        assert error.__notes__ == [trace]


def test_other_code_is_named_where_it_lies(tmp_path: Path) -> None:
    trace = TRACE.format(folder="/elsewhere")
    for code in ("code", None):
        error = error_of(failure(traceback=trace, message="no."), 1, job(tmp_path, code))
        assert str(error) == (
            "The training failed: rank 1 on node-3 after step 40: ValueError: no "
            "(/site/torch/functional.py:7). Log: logs/rank-1.log. The same command goes on from "
            "the last checkpoint."
        )


def test_a_traceback_in_the_log_of_a_killed_rank_is_no_cause(tmp_path: Path) -> None:
    killed = failure(kind="Killed", message="killed", traceback=TRACE.format(folder=tmp_path))
    said = str(error_of(killed, 6, job(tmp_path)))
    assert "after 6 attempts" in said
    assert ".py" not in said
    assert said.endswith("The same command goes on from the last checkpoint.")


def test_a_cluster_that_fails_at_every_start_is_an_engine_error(tmp_path: Path) -> None:
    found = error_of(failure(kind="EngineError", message="gone."), 2, job(tmp_path))
    assert isinstance(found, EngineError)
    assert str(found) == "gone."
