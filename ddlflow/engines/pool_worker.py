"""A data worker: works through what comes on a connection.

``python -m ddlflow.engines.pool_worker SYS_PATH --tasks-fd N``, or `serve` of a fresh interpreter,
is one of this machine, on one end of a socket pair.
"""

import json
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ddlflow.engines.mapping import ItemOutcome, call, failed
from ddlflow.errors import EngineError

OPTION = "--tasks-fd"


def serve(descriptor: int) -> None:
    """The life of a worker of this machine, which ends with its connection, whatever it does."""
    # Ctrl-C reaches the whole foreground group; what then happens is the driver's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work_through(Connection(descriptor), on_gone=lambda: os._exit(0))


def work_through(
    connection: Connection, *, on_gone: Callable[[], None], idle_s: float | None = None
) -> None:
    """Apply pickled functions to pickled items as they come, until there are no more.

    Args:
        connection: an item's message is a pickled pair, the answer its `ItemOutcome`. An empty
            message is the end, from either side: who sends one takes no more.
        on_gone: called in a thread, perhaps in the middle of an item, as the connection breaks.
        idle_s: without an item for so long, leave.
    """
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # A thread of its own receives, so that driver and worker never both wait to send.
    receiving = threading.Thread(target=_receive, args=(connection, tasks, on_gone), daemon=True)
    receiving.start()
    while True:
        try:
            payload = tasks.get(timeout=idle_s)
        except queue.Empty:
            payload = b""
        if not payload:
            break
        outcome = call(_unpickle_and_apply, payload)
        try:
            text = pickle.dumps(outcome)
        except Exception as error:
            text = pickle.dumps(failed(EngineError(f"A result cannot be sent back: {error}")))
        connection.send_bytes(text)
    with suppress(OSError):
        connection.send_bytes(b"")
    receiving.join()  # until the other side has hung up: nobody reads a closed connection


def _receive(
    connection: Connection, tasks: "queue.SimpleQueue[bytes]", on_gone: Callable[[], None]
) -> None:
    while True:
        try:
            payload = connection.recv_bytes()
        except (EOFError, OSError):
            on_gone()
            payload = b""
        tasks.put(payload)
        if not payload:
            return


def item_of(function: Callable[[Any], Any], item: Any) -> bytes:
    """The message of an item."""
    return pickle.dumps((function, item))


def outcome_of(answer: bytes) -> ItemOutcome:
    """What an answer says of its item."""
    outcome: ItemOutcome = pickle.loads(answer)  # noqa: S301 - of a worker of ours
    return outcome


def _unpickle_and_apply(payload: bytes) -> Any:
    function, item = pickle.loads(payload)  # noqa: S301 - from the driver that started us
    return function(item)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    serve(int(sys.argv[sys.argv.index(OPTION) + 1]))
