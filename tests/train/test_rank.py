"""A rank as its worker sees it: told by standard input, heard by a pipe, ended by its end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from hosts import OpenHosts, mount_over

from ddlflow.rank_protocol import RankStart, StoreAddress, line_of
from ddlflow.train.loop import Stopped
from ddlflow.train.saved import checkpoint

CODE = """
import torch
from torch import nn

print("first words of the user's module")

class Talking(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.layer = nn.Linear(num_features, 1)

    def forward(self, features):
        print('{"event": "result", "value": "this is only log"}')
        return self.layer(features).squeeze(1)
"""


SECRET = "0123456789abcdef" * 2


class Rank:
    """One process that was started as an engine's worker starts it."""

    def __init__(
        self,
        job: Any,
        rank: int = 0,
        world: int = 1,
        *,
        log: int | IO[str] = subprocess.PIPE,
        start: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen,
        host: str = "127.0.0.1",
    ) -> None:
        events, of_rank = os.pipe()
        self.process = start(
            [sys.executable, "-m", "ddlflow.train.rank", "--events-fd", str(of_rank)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            pass_fds=(of_rank,),
            start_new_session=True,
        )
        os.close(of_rank)
        self.events = os.fdopen(events)
        self._say(RankStart(rank, world, host, SECRET, os.getpid(), job.to_json()))

    def meet(self, host: str, port: int, timeout_s: float = 60.0) -> None:
        self._say(StoreAddress(host, port, timeout_s))

    def _say(self, message: RankStart | StoreAddress) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line_of(message) + "\n")
        self.process.stdin.flush()

    def hear(self, name: str) -> dict[str, Any]:
        """The next event of that name; those before it are passed over."""
        for line in self.events:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"no event {name}: {self.log()}")

    def rest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.events]

    def log(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def end(self) -> int:
        return self.process.wait(60)


@contextmanager
def started(*ranks: Rank) -> Iterator[None]:
    try:
        yield
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
            for pipe in (rank.process.stdin, rank.process.stdout, rank.events):
                if pipe is not None:
                    pipe.close()


def test_a_rank_tells_its_events_and_what_user_code_prints_is_only_log(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "talking_of_test_rank.py").write_text(CODE)
    more = {
        "code": tmp_path / "code",
        "model": {"use": "talking_of_test_rank:Talking"},
        "epochs": 2,
    }
    rank = Rank(bench().job(tmp_path / "t", **more))
    with started(rank):
        events = rank.rest()
        assert rank.end() == 0
        log = rank.log()
    names = [event["event"] for event in events]
    assert names[0] == "started"
    assert events[0]["pid"] == rank.process.pid
    assert names[-1] == "result"
    told = [name for name in names[1:-1] if name not in {"progress", "beat", "saved", "facts"}]
    assert told == ["digest", "epoch", "digest", "epoch"]
    assert "first words of the user's module" in log
    assert '{"event": "result", "value": "this is only log"}' in log
    # The process of its own computes what this one does.
    value = events[-1]["value"]
    assert value["model_digest"] == bench().train(tmp_path / "here", **more).result["model_digest"]
    assert (tmp_path / "t" / "model" / "model.json").exists()


LONG = {"epochs": 100_000, "early_stopping": None, "checkpoint_every_s": 0.1}


def test_sigterm_leaves_a_checkpoint_and_the_end_of_its_input_ends_it_at_once(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    job = bench().job(tmp_path / "t", **LONG)
    rank = Rank(job)
    with started(rank):
        rank.hear("epoch")
        rank.process.send_signal(signal.SIGTERM)
        events = rank.rest()
        assert rank.end() == 0
    assert events[-1]["event"] == "stopped"
    assert "result" not in {event["event"] for event in events}
    kept = checkpoint.latest(job.checkpoints)
    assert kept is not None
    steps = kept["state"]["position"][2]
    last = max(event["step"] for event in events if "step" in event)
    assert steps >= last

    again = Rank(job)
    with started(again):
        assert again.hear("resumed")["step"] == steps
        again.hear("epoch")
        again.process.send_signal(signal.SIGINT)  # Ctrl-C reaches the driver, not the rank
        again.hear("epoch")
        assert again.process.stdin is not None
        again.process.stdin.close()
        assert again.end() == 1
        assert "stopped" not in {event["event"] for event in again.rest()}


def test_an_error_is_told_with_its_traceback(bench: Callable[..., Any], tmp_path: Path) -> None:
    job = bench().job(tmp_path / "t")
    rank = Rank(replace(job, dataset=str(tmp_path / "no data")))
    with started(rank):
        events = rank.rest()
        assert rank.end() == 1
    last = events[-1]
    assert (last["event"], last["kind"]) == ("error", "DataError")
    assert "no data holds no data set" in last["message"]
    assert "DataError:" in last["traceback"]


def test_two_ranks_meet_at_a_port_of_the_systems_choice(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    more = {"virtual_ranks": 2, "epochs": 2, "model": {"use": "mlp", "dropout": 0.2}}
    job = bench().job(tmp_path / "t", **more)
    ranks = [Rank(job, rank, world=2) for rank in (0, 1)]
    with started(*ranks):
        port = ranks[0].hear("store")["port"]
        assert port > 0
        for rank in ranks:
            rank.meet("127.0.0.1", port)
        first, second = (rank.rest() for rank in ranks)
        assert [rank.end() for rank in ranks] == [0, 0]
    assert first[-1]["event"] == second[-1]["event"] == "result"
    assert (
        first[-1]["value"]["model_digest"]
        == bench().train(tmp_path / "alone", **more).result["model_digest"]
    )


# What a stranger on the network tries: to read the keys of the store, and to change them.
STRANGER = """
import sys
from datetime import timedelta
from torch._C._distributed_c10d import TCPStore
try:
    store = TCPStore(sys.argv[1], int(sys.argv[2]), timeout=timedelta(seconds=3))
    print(store.list_keys())
except Exception as error:
    print(type(error).__name__)
"""


# The addresses that something listens on.
LISTENING = """
import psutil
found = psutil.net_connections("tcp")
print(*sorted({c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}))
"""


def test_ranks_on_two_hosts_listen_on_their_own_addresses_and_know_no_stranger(
    bench: Callable[..., Any], tmp_path: Path, hosts: OpenHosts
) -> None:
    first, second, other = hosts("first", "second", "other", network=True)
    job = bench().job(tmp_path / "t", virtual_ranks=2, **LONG)
    ranks = [
        Rank(job, number, world=2, start=host.start, host=str(host.address))
        for number, host in enumerate((first, second))
    ]
    with started(*ranks):
        port = ranks[0].hear("store")["port"]
        stranger = [sys.executable, "-c", STRANGER, str(first.address), str(port)]
        assert other.run(stranger).stdout == "DistNetworkError\n"
        for rank in ranks:
            rank.meet(str(first.address), port)
        for rank, host in zip(ranks, (first, second), strict=True):
            rank.hear("epoch")
            seen = host.run([sys.executable, "-c", LISTENING]).stdout.split()
            assert seen == [host.address, "127.0.0.1"]
        assert other.run(stranger).stdout == "DistNetworkError\n"
        ranks[0].hear("epoch")  # which harms nobody


def test_a_rank_that_does_not_know_the_secret_is_no_part_of_the_gang(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    job = bench().job(tmp_path / "t", virtual_ranks=2)
    ranks = [Rank(job, number, world=2) for number in (0, 1)]
    with started(*ranks):
        port = ranks[0].hear("store")["port"]
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.settimeout(30)
                assert len(stranger.recv(32)) == 32
                stranger.sendall(bytes(64))
                assert stranger.recv(32) == b""
        for rank in ranks:
            rank.meet("127.0.0.1", port)
        assert "result" in {event["event"] for event in ranks[0].rest()}


def test_a_rank_whose_host_does_not_see_the_newest_checkpoint_yet_waits_for_it(
    bench: Callable[..., Any], tmp_path: Path, hosts: OpenHosts
) -> None:
    """Its listing is old; what it sees is a whole checkpoint, of an earlier step."""
    more = {"virtual_ranks": 2, "epochs": 4, "digest_every": 1, "checkpoint_every_s": 1e-6}
    asked = iter([False] * 14 + [True])
    job = bench().job(tmp_path / "t", **more)
    with pytest.raises(Stopped):
        bench().train(tmp_path / "t", must_stop=lambda: next(asked), **more)
    place = Path(job.checkpoints.location)
    before, newest = (shutil.copy(place / name, tmp_path) for name in checkpoint.files(place))
    (other,) = hosts("other")
    mount_over(other, place)
    assert other.run(["cp", before, str(place)]).returncode == 0
    ranks = [Rank(job, 0, world=2), Rank(job, 1, world=2, start=other.start)]
    with started(*ranks):
        port = ranks[0].hear("store")["port"]
        for rank in ranks:
            rank.meet("127.0.0.1", port)
        step = ranks[0].hear("resumed")["step"]
        assert step == checkpoint.step_of(Path(newest).name)
        assert other.run(["cp", newest, str(place)]).returncode == 0
        assert ranks[1].hear("resumed")["step"] == step
        value = ranks[0].hear("result")["value"]
    whole = bench().train(tmp_path / "whole", **more).result
    assert (value["model_digest"], value["trail"]) == (whole["model_digest"], whole["trail"])


def test_a_rank_that_cannot_reach_the_others_says_so(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    rank = Rank(bench().job(tmp_path / "t", virtual_ranks=2), rank=1, world=2)
    with started(rank), socket.create_server(("127.0.0.1", 0)) as silent:
        rank.meet("127.0.0.1", silent.getsockname()[1], timeout_s=0.5)
        told = rank.hear("error")
        assert rank.end() == 1
    assert told["kind"] == "StartTimeout"
    assert told["message"] == "rank 1 did not meet the others within 0.5 s"


def test_a_log_on_a_full_disk_loses_words_and_no_result(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "talking_of_test_rank.py").write_text(CODE)
    model = {"use": "talking_of_test_rank:Talking"}
    job = bench().job(tmp_path / "t", code=tmp_path / "code", model=model)
    with Path("/dev/full").open("w") as full:
        rank = Rank(job, log=full)
        with started(rank):
            assert rank.rest()[-1]["event"] == "result"
            assert rank.end() == 0


def test_a_rank_that_is_told_nothing_ends() -> None:
    events, of_rank = os.pipe()
    os.close(events)
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow.train.rank", "--events-fd", str(of_rank)],
        stdin=subprocess.DEVNULL,
        pass_fds=(of_rank,),
        check=False,
    )
    os.close(of_rank)
    assert done.returncode == 1
