"""Leases among real processes: killed, suspended, and many at once."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddlflow.errors import DdlflowError
from ddlflow.store import lease, owner
from ddlflow.store.claims import FolderClaims

# argv: the lease, the machine that it is said to be on ("": this one), seconds between beats.
HOLDER = """
import sys
from pathlib import Path

from ddlflow.store import lease, owner

folder, machine, beat_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
if machine:
    owner._here = lambda: (machine, 1)
say = lambda text: print(text, flush=True)
lost = lambda error: say(f"lost: {error}")
with lease.held(folder, "it", say=say, on_lost=lost, beat_s=beat_s):
    say("held")
    sys.stdin.read()
"""
# argv: the lease, the log, the name of a dead owner's entry. Holds it again and again, and leaves
# it as one who died with it, so that each time all others find a dead owner at once; without a
# name lets it go.
RACER = """
import os
import sys
import time
from pathlib import Path

from ddlflow.store import lease

folder, log, dead = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), sys.argv[3]
lease.LOOK_S = 0.0005
note = lambda text: os.write(log, f"{text} {os.getpid()}\\n".encode())
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    lost = lambda error: note("lost")
    with lease.held(folder, "it", say=lambda _: None, on_lost=lost, beat_s=600.0, stale_s=0.005):
        note("in")
        time.sleep(0.005)
        note("out")
        if dead:
            (mine,) = folder.iterdir()
            mine.rename(folder / f"{number}{os.getpid()}{dead}")
"""
# argv: the storage, the stage's work. A machine of its own, so that silence counts.
WORKER = """
import sys
import time
from pathlib import Path

from ddlflow.store import lease, owner
from ddlflow.engines import GangJob
from ddlflow.cli.output import say_error
from ddlflow.report.screen import Screen
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request
from ddlflow.spec.site import Site

storage, how, ranks = sys.argv[1:]
owner._here = lambda: ("another", 1)
lease.BEAT_S = 0.1
site = Site.model_validate(
    {"engine": {"use": "local", "workers": 2}, "device": "cpu", "storage": storage}
)


def work(store):
    folder = Path(store.location)
    if how == "gang":
        flag = {"flag": f"{folder}/checkpoint"}
        job = GangJob("stop", flag, 1, str(folder), {}, (ranks,), 60.0, 600.0)
        session.gang(job, 2, lambda event: (folder / "begun").touch())
    (folder / "begun").touch()
    time.sleep(600)


try:
    with Session(Request(None, site, None, None, None), Screen()) as session:
        session.stage("train", {}, work, dict)
except BaseException as error:
    sys.exit(say_error(error))
"""
Holder = Callable[..., "subprocess.Popen[str]"]


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    """All that a test starts; what it leaves is killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> Holder:
    """Starts a process that holds ``tmp_path/l`` until its standard input ends."""

    def begin(machine: str = "", beat_s: float = 0.1) -> "subprocess.Popen[str]":
        process = start(HOLDER, tmp_path / "l", machine, beat_s)
        processes.append(process)
        assert line(process) == "held"
        return process

    return begin


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def until(seen: Callable[[], Any], give_up_s: float = 60.0) -> None:
    end = time.monotonic() + give_up_s
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.02)


def never(error: DdlflowError) -> None:
    raise AssertionError(error)


def held(folder: Path, said: list[str], **settings: Any) -> Any:
    settings = {"on_lost": never, **settings}
    return lease.held(folder, "it", say=said.append, **settings)


def entry(folder: Path) -> lease.Entry:
    found = lease.current(folder)
    assert found is not None
    return found


def test_a_lease_names_its_owner_and_leaves_nothing_behind(tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path / "l", said, beat_s=0.01) as mine:
        found = entry(tmp_path / "l")
        assert found.owner.words == f"process {os.getpid()} on {os.uname().nodename}"
        until(lambda: entry(tmp_path / "l").beat > found.beat + 2)
        mine.confirm()
        mine.release()
    assert list(tmp_path.iterdir()) == []
    assert said == []


def test_the_second_waits_and_says_once_for_whom(tmp_path: Path, holder: Holder) -> None:
    first = holder(beat_s=0.01)
    said: list[str] = []

    def let_go() -> None:
        until(lambda: said)
        time.sleep(3 * lease.LOOK_S)
        first.communicate()

    thread = threading.Thread(target=let_go)
    thread.start()
    with held(tmp_path / "l", said, stale_s=0.0):
        assert entry(tmp_path / "l").owner.pid == os.getpid()
    thread.join()
    assert said == [f"waiting: process {first.pid} on {os.uname().nodename} works on it"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_of_this_machine_is_followed_at_once(
    tmp_path: Path, holder: Holder, reaped: bool
) -> None:
    first = holder()
    first.kill()
    until(lambda: lease.is_gone(entry(tmp_path / "l")))  # not reaped: a zombie is gone too
    if reaped:
        first.wait()
    said: list[str] = []
    with held(tmp_path / "l", said, stale_s=1e9):
        assert entry(tmp_path / "l").owner.pid == os.getpid()
    owner = f"process {first.pid} on {os.uname().nodename}"
    assert said == [f"taken over from {owner}, which is gone: it"]
    assert list(tmp_path.iterdir()) == []


def test_a_suspended_owner_of_this_machine_is_waited_for(tmp_path: Path, holder: Holder) -> None:
    first = holder()
    first.send_signal(signal.SIGSTOP)
    said: list[str] = []

    def wake() -> None:
        until(lambda: said)
        time.sleep(3 * lease.LOOK_S)
        first.send_signal(signal.SIGCONT)
        first.communicate()

    thread = threading.Thread(target=wake)
    thread.start()
    with held(tmp_path / "l", said, stale_s=0.0):
        pass
    thread.join()
    assert [text.partition(":")[0] for text in said] == ["waiting"]


def test_a_silent_owner_elsewhere_is_followed_and_notices_when_it_wakes(
    tmp_path: Path, holder: Holder
) -> None:
    first = holder(machine="another")
    first.send_signal(signal.SIGSTOP)
    said: list[str] = []
    with held(tmp_path / "l", said, stale_s=1.0) as mine:
        waiting, taken = said
        assert waiting.startswith("waiting: process")
        assert f"taken over from process {first.pid} on " in taken
        assert "which has not been heard of for " in taken
        first.send_signal(signal.SIGCONT)
        lost = line(first)
        assert f"lost: process {os.getpid()} on {os.uname().nodename} has taken over" in lost
        assert "\n" not in lost
        assert first.communicate() == ("", "")
        mine.confirm()  # what the first did at its end harmed nobody
    assert list(tmp_path.iterdir()) == []


def test_one_beat_saves_a_lease_from_who_saw_none(tmp_path: Path, holder: Holder) -> None:
    holder(machine="another", beat_s=0.01)
    before = entry(tmp_path / "l")
    until(lambda: entry(tmp_path / "l").beat > before.beat)
    mine = lease.Entry("f" * 32, 0, owner.this_owner())
    claims = FolderClaims(tmp_path / "l")
    assert not claims.replace(before, mine)
    assert not claims.take(mine)
    assert entry(tmp_path / "l").token == before.token
    assert [path.name for path in tmp_path.iterdir()] == ["l"]


@pytest.mark.parametrize("before", ["killed", "silent elsewhere", "let go"])
def test_of_many_who_want_it_one_holds_it_at_a_time(
    tmp_path: Path, holder: Holder, processes: list["subprocess.Popen[str]"], before: str
) -> None:
    dead = ""
    if before != "let go":
        first = holder(machine="another" if before == "silent elsewhere" else "")
        first.kill()
        first.communicate()
        dead = entry(tmp_path / "l").name
    log = tmp_path / "log"
    log.touch()
    racers = [start(RACER, tmp_path / "l", log, dead) for _ in range(8)]
    processes += racers
    for racer in racers:
        assert line(racer) == "ready"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        assert racer.communicate(timeout=120) == ("", "")
    notes = [text.split() for text in log.read_text().splitlines()]
    assert len(notes) == 2 * 20 * 8
    for (what, who), (next_what, next_who) in zip(notes[::2], notes[1::2], strict=True):
        assert (what, next_what) == ("in", "out")
        assert who == next_who
    assert {who for _, who in notes} == {str(racer.pid) for racer in racers}


def test_a_beat_whose_answer_was_lost_is_no_loss(tmp_path: Path) -> None:
    with held(tmp_path / "l", [], beat_s=600.0) as mine:
        found = entry(tmp_path / "l")
        beaten = replace(found, beat=found.beat + 1)
        (tmp_path / "l" / found.name).rename(tmp_path / "l" / beaten.name)
        mine.confirm()
        mine.confirm()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_fails_for_a_moment_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "l"
    with held(folder, [], beat_s=0.01) as mine:
        folder.rename(tmp_path / "kept")
        folder.touch()  # a file where the folder was: ENOTDIR, as good as any other error
        with pytest.raises(NotADirectoryError):
            mine.confirm()
        time.sleep(0.1)
        folder.unlink()
        (tmp_path / "kept").rename(folder)
        before = entry(folder).beat
        until(lambda: entry(folder).beat > before + 1)


def test_a_full_disk_keeps_a_lease(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=20", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.decode()}")
    try:
        with held(tmp_path / "l", []) as mine:
            with pytest.raises(OSError, match="No space"):
                (tmp_path / "large").write_bytes(bytes(1 << 20))
            with contextlib.suppress(OSError):
                for number in range(20):
                    (tmp_path / str(number)).touch()
            with pytest.raises(OSError, match="No space"):
                (tmp_path / "one more").touch()
            for _ in range(5):
                mine.confirm()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_lease_that_was_removed_is_lost(tmp_path: Path) -> None:
    lost: list[DdlflowError] = []
    with held(tmp_path / "l", [], beat_s=0.01, on_lost=lost.append) as mine:
        shutil.rmtree(tmp_path / "l")
        until(lambda: lost)
        with pytest.raises(DdlflowError, match="is gone"):
            mine.confirm()
    assert len(lost) == 1


def test_a_lease_that_this_process_left_behind_is_not_waited_for(tmp_path: Path) -> None:
    """As a signal in the wrong moment may do in a notebook, whose process lives on."""
    with held(tmp_path / "l", [], beat_s=600.0):
        old = replace(entry(tmp_path / "l"), token="0" * 32)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / old.name).touch()
    said: list[str] = []
    with held(tmp_path / "l", said):
        pass
    assert "which is gone" in said[0]


def test_a_process_number_that_came_again_is_another_process(tmp_path: Path) -> None:
    with held(tmp_path / "l", []):
        mine = entry(tmp_path / "l")
    started = owner._started(os.getppid())
    assert started is not None
    parent = replace(mine.owner, pid=os.getppid(), started=started)
    assert not lease.is_gone(replace(mine, owner=parent))
    assert lease.is_gone(replace(mine, owner=replace(parent, started=1)))


@pytest.mark.parametrize("how", ["alone", "gang"])
def test_work_that_another_command_has_taken_over_ends_and_writes_nothing(
    tmp_path: Path, processes: list["subprocess.Popen[str]"], how: str
) -> None:
    ranks = Path(__file__).parents[1] / "engines/ranks"
    process = start(WORKER, tmp_path, how, ranks)
    processes.append(process)
    train = tmp_path / "train"
    until(lambda: list(train.glob("*/begun")))
    (folder,) = (path.parent for path in train.glob("*/begun"))
    process.send_signal(signal.SIGSTOP)
    with held(train / f".{folder.name}.lease", [], stale_s=1.0):
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert f"ddlflow: process {os.getpid()} on " in said
        assert "Traceback" not in said
    left = {path.name for path in folder.iterdir()}
    assert not left & {"stage.json", "checkpoint"}
    assert sorted(path.name for path in train.iterdir()) == [folder.name]


def test_a_stage_leaves_its_result_and_no_lease(tmp_path: Path) -> None:
    from ddlflow.report.screen import Screen
    from ddlflow.runs.session import Session
    from ddlflow.spec.load import Request
    from ddlflow.spec.site import Site

    site = Site.model_validate({"storage": str(tmp_path)})
    with Session(Request(None, site, None, None, None), Screen()) as session:
        first = session.stage("train", {}, lambda folder: {"a": 1}, dict)
        again = session.stage("train", {}, lambda folder: {"a": 2}, dict)
    assert (first.value, again.value, again.cached) == ({"a": 1}, {"a": 1}, True)
    assert [path.name for path in (tmp_path / "train").iterdir()] == [first.key]
    assert json.loads((Path(first.folder) / "stage.json").read_text())["key"] == first.key
