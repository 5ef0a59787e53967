import subprocess
import sys

import pytest

from ddlflow.errors import TrackingError
from ddlflow.tracking.records import RunBegan, RunEnded, TextLogged
from ddlflow.tracking.spool import Sent, Spool, read_sent, unfinished


def began(time):
    return RunBegan(time, "ab", "sqlite:///x", "ddlflow", "one", {})


def test_records_come_back_in_order_with_their_offsets(tmp_path):
    spool = Spool(tmp_path / "a")
    ends = [spool.append(TextLogged(n, "a.txt", "grün\n" * n)) for n in range(5)]
    assert [(record.t, end) for record, end in spool.waiting()] == list(enumerate(ends))
    spool.save(Sent(offset=ends[2]))
    assert [record.t for record, _ in spool.waiting()] == [3, 4]
    assert spool.num_waiting() == 2
    assert not spool.is_sent
    spool.save(Sent(offset=ends[-1]))
    assert spool.is_sent
    spool.close()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path, cut):
    spool = Spool(tmp_path / "a")
    kept = spool.append(began(1))
    spool.append(TextLogged(2, "a.txt", "x" * 200_000))
    spool.close()
    records = tmp_path / "a" / "ops.jsonl"
    records.write_bytes(records.read_bytes()[:-cut])

    again = Spool(tmp_path / "a")
    assert [record.t for record, _ in again.waiting()] == [1]
    assert again.append(TextLogged(3, "a.txt", "")) > kept
    assert [record.t for record, _ in again.waiting()] == [1, 3]
    again.close()


def test_a_spool_belongs_to_one_process_and_is_free_when_that_dies(tmp_path):
    folder = tmp_path / "a"
    code = f"""
import sys, pathlib
from ddlflow.tracking.records import RunResumed
from ddlflow.tracking.spool import Spool
spool = Spool(pathlib.Path({str(folder)!r}))
spool.append(RunResumed(1))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(TrackingError, match="another process"):
            Spool(folder)
        other.kill()
    Spool(folder).close()


def test_a_lost_position_makes_the_run_be_looked_up(tmp_path):
    (tmp_path / "sent.json").write_text("")
    assert read_sent(tmp_path) == Sent(creating=True)


def test_unfinished_spools_are_those_with_records_left_or_without_an_end(tmp_path):
    def spool(name, time, *, end, sent):
        opened = Spool(tmp_path / name)
        offset = opened.append(began(time))
        if end:
            offset = opened.append(RunEnded(time, "FAILED"))
        opened.save(Sent(offset=offset if sent else 0))
        opened.close()

    spool("done", 1, end=True, sent=True)
    spool("killed", 4, end=False, sent=True)
    spool("away", 3, end=True, sent=False)
    (tmp_path / "empty").mkdir()
    assert [folder.name for folder in unfinished(tmp_path)] == ["away", "killed"]
    assert unfinished(tmp_path / "nowhere") == []


def test_a_spool_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"cannot be written to .*file/a"):
        Spool(tmp_path / "file" / "a")
