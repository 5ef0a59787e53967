"""One contract, every engine: local, Dask's LocalCluster, Dask's own command line on loopback."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddlflow.engines import (
    Engine,
    Failure,
    GangEvent,
    GangJob,
    GangResult,
    ItemDone,
    gang,
    open_engine,
)
from ddlflow.engines.exporting import TableOrder
from ddlflow.engines.fork_owner import SWITCH
from ddlflow.errors import DataError, EngineError, SpecError
from ddlflow.rank_protocol import RankSaid, RankStopped
from ddlflow.spec.site import Site
from ddlflow.spec.tables import DaskTable, SparkTable, Table

RANKS = str(Path(__file__).parent / "ranks")
sys.path.insert(0, RANKS)

import data_work  # noqa: E402 - it is on the path only now

SLOTS = 3


@pytest.fixture(scope="module", params=["local", "dask", "dask address", "spark"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: Any, dask_by_command_line: Any
) -> Iterator[Engine]:
    if request.param == "dask address":
        with dask_by_command_line(tmp_path_factory.mktemp("dask"), SLOTS) as (address, _):
            site = Site(engine={"use": "dask", "address": address, "workers": SLOTS})
            with open_engine(site, slots=1, threads=1) as opened:
                yield opened
    else:
        with open_engine(Site(engine={"use": request.param}), slots=SLOTS, threads=1) as opened:
            yield opened


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def make(module: str, start_timeout_s: float = 30.0, **payload: Any) -> GangJob:
        return GangJob(
            module=module,
            payload=payload,
            threads=2,
            log_folder=str(tmp_path / "logs"),
            env={"GIVEN": "by the job"},
            python_path=(RANKS,),
            start_timeout_s=start_timeout_s,
            preload=("json",),
        )

    return make


def failure_of(result: GangResult) -> Failure:
    assert result.failure is not None
    assert result.values is None
    assert not result.stopped
    return result.failure


def is_ready(heard: GangEvent) -> bool:
    return isinstance(heard.event, RankSaid) and heard.event.name == "ready"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- map ----------------------------------------------------------------------------------------


def test_map_gives_results_in_order_and_tells_of_each(engine: Engine) -> None:
    events: list[ItemDone] = []
    numbers = list(range(20))
    assert list(engine.map(data_work.square, numbers, on_event=events.append)) == [
        x * x for x in numbers
    ]
    assert sorted(event.item for event in events) == numbers
    assert all(event.of == 20 for event in events)
    assert list(engine.map(data_work.square, [])) == []


def test_map_is_lazy_in_items_and_results(engine: Engine) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = engine.map(data_work.big, endless())
    assert taken == []
    for x in range(5):
        assert next(results).endswith(str(x).encode())
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 5 + 4 * SLOTS + 1
    assert list(engine.map(data_work.square, [4])) == [16]


def test_map_raises_what_the_function_raised(engine: Engine) -> None:
    results = engine.map(data_work.fail_on_three, iter(range(10**9)))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three") as wrong:
        next(results)
    assert str(wrong.value) == "three is not allowed"
    assert "data_work.py" in wrong.value.__notes__[0]
    with pytest.raises(DataError) as data:
        list(engine.map(data_work.fail_with, ["data"]))
    assert str(data.value) == "rows.csv: line 3 has no label."
    with pytest.raises(EngineError, match="OddError: 3 is odd"):
        list(engine.map(data_work.fail_with, ["odd"]))
    with pytest.raises(EngineError, match="SystemExit"):
        list(engine.map(data_work.fail_with, ["exit"]))


def test_map_cancels_the_rest_when_closed(engine: Engine, tmp_path: Path) -> None:
    results = engine.map(data_work.slow_mark, [(str(tmp_path), x) for x in range(100)])
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    list(engine.map(data_work.square, range(SLOTS)))
    assert len(list(tmp_path.iterdir())) <= 4 * SLOTS + 1


def test_map_tries_again_after_a_lost_worker(engine: Engine, tmp_path: Path) -> None:
    items = [(str(tmp_path), x) for x in range(8)]
    assert list(engine.map(data_work.die_once, items)) == list(range(8))
    assert (tmp_path / "died").exists()


def test_map_names_the_item_that_kills_its_workers(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"Item 1 .*workers?.*(process \d+|tcp://)") as caught:
        list(engine.map(data_work.die_always, [0, 1]))
    assert "out of memory?" in str(caught.value)
    assert list(engine.map(data_work.square, range(3))) == [0, 1, 4]


def test_what_map_work_prints_is_not_on_standard_output(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(engine.map(data_work.speak, [1])) == [1]
    assert capfd.readouterr().out == ""


def test_every_worker_is_asked(engine: Engine) -> None:
    give_up = time.monotonic() + 60  # those that a test before this one killed may still start
    while len(engine.ask(data_work.where)) != SLOTS and time.monotonic() < give_up:
        time.sleep(0.2)
    assert len(engine.ask(data_work.where)) == SLOTS
    with pytest.raises(ValueError, match="nobody knows"):
        engine.ask(data_work.unknown)


def test_data_workers_are_forked_once_ranks_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)  # of an engine above without fork servers
    with open_engine(Site(engine={"use": "local"}), slots=2, threads=1) as engine:
        fresh = set(engine.map(data_work.parents, range(4)))
        assert fresh == {os.getpid()}
        engine.warm(1, ("json",))
        give_up = time.monotonic() + 120
        while os.getpid() in (found := set(engine.map(data_work.parents, range(4)))):
            assert time.monotonic() < give_up
            time.sleep(0.2)
        (server,) = found
        assert psutil.Process(server).ppid() == os.getpid()
        items = [(str(tmp_path), x) for x in range(8)]
        assert list(engine.map(data_work.die_once, items)) == list(range(8))
    with open_engine(Site(engine={"use": "local"}), slots=2, threads=1) as engine:
        engine.warm(1, ("json",))
        assert set(engine.map(data_work.parents, range(4))) == {server}


# ---- gang ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gang_gives_each_ranks_value(
    engine: Engine, job: Any, world: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[GangEvent] = []
    result = engine.gang(job("meet"), world, on_event=events.append)
    assert result == GangResult([list(range(world)), *([r] for r in range(1, world))], None, False)
    ready = [event for event in events if is_ready(event)]
    assert sorted(event.rank for event in ready) == list(range(world))
    assert {event.host for event in ready} == {"127.0.0.1"}
    words = {"threads": "2", "given": "by the job"}
    assert [event.event for event in ready] == [RankSaid("ready", words)] * world
    for rank in range(world):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert log == f"a user's print on rank {rank}\n"
    assert "user's print" not in "".join(capfd.readouterr())


def test_gang_carries_thousands_of_events_in_order(engine: Engine, job: Any) -> None:
    steps: list[int] = []

    def collect(event: GangEvent) -> None:
        if isinstance(event.event, RankSaid):
            steps.append(event.event.values["step"])

    result = engine.gang(job("many", events=5000), 1, on_event=collect)
    assert result.values == [2**70]  # more than msgpack could carry
    assert steps == list(range(5000))


@pytest.mark.filterwarnings("ignore")
def test_gang_runs_a_real_all_reduce(engine: Engine, job: Any) -> None:
    result = engine.gang(job("all_reduce", start_timeout_s=120.0), 2)
    assert result.failure is None
    assert result.values == [3.0, 3.0]


def test_a_rank_is_a_fresh_interpreter_where_nothing_is_forked(
    job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What differs then: how a process begins, what it says of a failure, and how it is ended."""
    monkeypatch.setenv(SWITCH, "0")
    with open_engine(Site(engine={"use": "local"}), slots=2, threads=1) as opened:
        assert opened.gang(job("meet"), 2).values == [[0, 1], [1]]
        assert (tmp_path / "logs" / "rank-1.log").read_text() == "a user's print on rank 1\n"
        failure = failure_of(opened.gang(job("fail", how="raise", rank=1), 2))
        assert (failure.rank, failure.kind) == (1, "ValueError")
        failure = failure_of(opened.gang(job("fail", how="kill", rank=0), 2))
        assert failure.kind == "Killed"
        failure = failure_of(opened.gang(job("no_such_module"), 1))
        assert "No module named no_such_module" in failure.traceback
        items = [(str(tmp_path), x) for x in range(8)]
        assert list(opened.map(data_work.die_once, items)) == list(range(8))


def test_too_few_slots_start_nothing(engine: Engine, job: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"{SLOTS + 1} ranks .* {SLOTS} .*engine\.workers"):
        engine.gang(job("meet"), SLOTS + 1)
    assert not (tmp_path / "logs").exists()


def test_a_rank_that_raises_is_the_first_cause(engine: Engine, job: Any, tmp_path: Path) -> None:
    pids: list[int] = []

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            pids.append(event.event.values["pid"])

    result = engine.gang(job("fail", how="raise", rank=1), 3, on_event=collect)
    failure = failure_of(result)
    assert (failure.rank, failure.host, failure.step) == (1, "127.0.0.1", 3)
    assert (failure.kind, failure.message) == ("ValueError", "the third row is odd")
    assert failure.traceback.endswith("ValueError: the third row is odd\n")
    assert failure.log == str(tmp_path / "logs" / "rank-1.log")
    assert not any(alive(pid) for pid in pids)
    assert engine.gang(job("meet"), 3).failure is None


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("kill", "Killed", "killed by signal 9 (SIGKILL); out of memory?"),
        ("exit", "Exited", "exited with status 3"),
        ("no_result", "Exited", "exited with status 0 without a result"),
        ("garbage", "BadEvent", "The rank wrote a line that is no event: 'this is no event'."),
    ],
)
def test_a_rank_that_dies_is_named(
    engine: Engine, job: Any, how: str, kind: str, message: str
) -> None:
    pids: list[int] = []

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            pids.append(event.event.values["pid"])

    failure = failure_of(engine.gang(job("fail", how=how, rank=0), 2, on_event=collect))
    assert (failure.rank, failure.kind, failure.message) == (0, kind, message)
    assert not any(alive(pid) for pid in pids)
    if how == "exit":
        assert failure.traceback == "the last words\n"


def test_a_module_that_is_not_there_is_told_from_the_log(engine: Engine, job: Any) -> None:
    failure = failure_of(engine.gang(job("no_such_module"), 1))
    assert (failure.kind, failure.message) == ("Exited", "exited with status 1")
    assert "No module named no_such_module" in failure.traceback


def test_stop_set_beforehand_starts_nothing(engine: Engine, job: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert engine.gang(job("meet"), 1, stop=stop) == GangResult(None, None, True)
    assert not (tmp_path / "logs").exists()


def test_a_reset_connection_does_not_hide_the_killed_peer(engine: Engine, job: Any) -> None:
    failure = failure_of(engine.gang(job("fail", peer_error_rank=0, late_kill_rank=1), 2))
    assert (failure.rank, failure.kind) == (1, "Killed")
    failure = failure_of(engine.gang(job("fail", peer_error_rank=0), 2))
    assert (failure.rank, failure.kind) == (0, "RuntimeError")


def test_a_killed_worker_ends_the_gang(engine: Engine, job: Any) -> None:
    if engine.name == "local":
        pytest.skip("the worker of local ranks is the driver")
    pids: list[int] = []

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            pids.append(event.event.values["pid"])

    result = engine.gang(job("fail", how="kill_worker", rank=1), 3, on_event=collect)
    failure = failure_of(result)
    assert (failure.rank, failure.kind, failure.step) == (1, "WorkerLost", 3)
    assert re.search(r"tcp://127\.0\.0\.1:|Spark worker on .* \(process \d+\)", failure.message)
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)
    assert engine.gang(job("meet"), 3).failure is None  # once the nanny has started it again


def test_silence_at_the_start_is_a_failure(engine: Engine, job: Any) -> None:
    failure = failure_of(engine.gang(job("fail", start_timeout_s=3.0, silent_rank=1), 2))
    assert (failure.rank, failure.kind) == (1, "StartTimeout")
    assert failure.message == "no sign of life within 3 s of the start (rank 1 of 2)"


def test_stop_asks_rank_0_and_waits_for_all(engine: Engine, job: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    ready: set[int] = set()
    stopped: set[int] = set()

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            ready.add(event.rank)
        if isinstance(event.event, RankStopped):
            stopped.add(event.rank)
        if ready == {0, 1}:
            stop.set()

    result = engine.gang(job("stop", flag=str(tmp_path / "flag")), 2, on_event=collect, stop=stop)
    assert result == GangResult(None, None, True)
    assert stopped == {0, 1}


def test_stop_kills_ranks_that_do_not_end(
    engine: Engine, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang, "_FOLLOW_S", 1.0)  # so that the test need not wait as long
    stop = threading.Event()
    pids: list[int] = []

    def collect(event: GangEvent) -> None:
        if is_ready(event):
            pids.append(event.event.values["pid"])
            stop.set()

    # Rank 0 dies of SIGTERM; the other, which never hears of it, is killed.
    result = engine.gang(job("fail"), 2, on_event=collect, stop=stop)
    assert result == GangResult(None, None, True)
    assert not any(alive(pid) for pid in pids)


def test_a_listener_that_raises_leaves_no_rank(engine: Engine, job: Any) -> None:
    pids: list[int] = []

    def burst(event: GangEvent) -> None:
        if is_ready(event):
            pids.append(event.event.values["pid"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.gang(job("fail"), 2, on_event=burst)
    assert not any(alive(pid) for pid in pids)
    assert engine.gang(job("meet"), 2).failure is None


@pytest.mark.parametrize(
    "table", [SparkTable(spark="events"), DaskTable(dask="t:f")], ids=["spark", "dask"]
)
def test_a_table_of_another_framework_is_refused_in_one_line(
    engine: Engine, table: Table, tmp_path: Path
) -> None:
    if table.engine == engine.name:
        pytest.skip("its own tables have tests of their own")
    with pytest.raises(SpecError, match=f"engine.use: {table.engine}") as told:
        engine.export(TableOrder(table, "data.source", tmp_path))
    assert "\n" not in str(told.value)


def test_describe_is_one_line(engine: Engine) -> None:
    line = engine.describe()
    assert engine.name in line
    assert str(engine.slots) in line
    assert "\n" not in line


def test_what_is_imported_ahead_is_there_and_what_cannot_be_harms_nobody(engine: Engine) -> None:
    """A local engine's workers have nothing to do: they are forked from what has PyTorch."""
    engine.import_ahead(("no_such_module_of_ours", "colorsys"))
    if engine.name == "dask":
        deadline = time.monotonic() + 30
        while not all(engine.map(data_work.has_imported, ["colorsys"] * SLOTS)):
            assert time.monotonic() < deadline
    assert list(engine.map(data_work.has_imported, ["sys"] * SLOTS)) == [True] * SLOTS
