"""The gate before a gang's store: who does not know the secret comes nowhere."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psutil
import pytest

from ddlflow.train.parallel import gate
from ddlflow.train.parallel.gate import Gate

SECRET, OTHER = "ab" * 16, "cd" * 16


class Store:
    """Stands for the store: says back what it hears, and keeps it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.reached = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        self.heard.append(b"")
        self.reached.set()
        with one:
            while chunk := one.recv(1 << 16):
                self.heard[-1] += chunk
                one.sendall(chunk)


@contextmanager
def ended(*gates: Gate) -> Iterator[None]:
    try:
        yield
    finally:
        for one in gates:
            process: Any = one._process
            process.stdin.close()
            assert process.wait(30) == 0  # as its rank does, it ends
            process.stdout.close()


def exchange(port: int, said: bytes) -> bytes:
    """What comes back before the other end closes, or as much as was said."""
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.settimeout(30)
        one.sendall(said)
        back = b""
        try:
            while len(back) < len(said) and (chunk := one.recv(1 << 16)):
                back += chunk
        except ConnectionResetError:
            pass
        return back


def test_who_knows_the_secret_passes_whatever_it_says() -> None:
    store = Store()
    door = gate.open_door("127.0.0.1", store.port, SECRET)
    way = gate.open_way("127.0.0.1", door.port, SECRET)
    with ended(door, way), closing(store.socket):
        large = bytes(range(256)) * 40_000  # more than any buffer on the way
        assert exchange(way.port, b"hello") == b"hello"
        assert exchange(way.port, large) == large
        assert not door.everywhere


def test_who_knows_another_secret_or_none_does_not_reach_the_store() -> None:
    store = Store()
    door = gate.open_door("127.0.0.1", store.port, SECRET)
    way = gate.open_way("127.0.0.1", door.port, OTHER)
    with ended(door, way), closing(store.socket):
        assert exchange(way.port, b"hello") == b""
        nonce = exchange(door.port, bytes(64))
        assert len(nonce) == 32  # and nothing after it
        assert store.heard == []


def test_an_answer_of_an_earlier_connection_is_worth_nothing() -> None:
    """A stranger who has listened says again what a rank said."""
    store = Store()
    door = gate.open_door("127.0.0.1", store.port, SECRET)
    tapped = socket.create_server(("127.0.0.1", 0))
    way = gate.open_way("127.0.0.1", tapped.getsockname()[1], SECRET)
    with ended(door, way), closing(store.socket), tapped:
        threading.Thread(target=exchange, args=(way.port, b"hello"), daemon=True).start()
        one, _ = tapped.accept()
        with one, socket.create_connection(("127.0.0.1", door.port)) as real:
            one.sendall(real.recv(32))
            said = one.recv(64)
            real.sendall(said)
            assert len(real.recv(32)) == 32
            store.reached.wait(30)  # the door answers before it has reached the store
        assert exchange(door.port, said)[32:] == b""
        assert store.heard == [b""]


def test_a_rank_says_nothing_to_a_door_that_does_not_know_the_secret() -> None:
    false = socket.create_server(("127.0.0.1", 0))
    way = gate.open_way("127.0.0.1", false.getsockname()[1], SECRET)
    with ended(way), false:
        said: list[bytes] = []
        thread = threading.Thread(target=lambda: said.append(exchange(way.port, b"my weights")))
        thread.start()
        one, _ = false.accept()
        with one:
            one.sendall(bytes(32))
            proof = b""
            while len(proof) < 64:
                proof += one.recv(64)
            one.sendall(bytes(32))
            assert one.recv(64) == b""
        thread.join()
        assert said == [b""]


def test_a_door_listens_on_its_own_address_or_says_that_it_does_not() -> None:
    own, foreign = (gate.open_door(host, 1, SECRET) for host in ("127.0.0.1", "192.0.2.1"))
    with ended(own, foreign):
        assert (own.everywhere, foreign.everywhere) == (False, True)
        connections: Any = psutil.Process(own._process.pid).net_connections("tcp")
        assert {c.laddr.ip for c in connections} == {"127.0.0.1"}


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_gate_ends_with_its_rank(how: str) -> None:
    code = (
        "from ddlflow.train.parallel import gate; import sys, time\n"
        f"print(gate.open_door('127.0.0.1', 1, '{SECRET}')._process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    process = psutil.Process(int(rank.stdout.readline()))
    rank.kill() if how == "killed" else rank.communicate("")
    process.wait(30)
    rank.communicate()
