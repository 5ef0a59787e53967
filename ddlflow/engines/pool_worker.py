"""A data worker of this machine: works through what comes on one end of a socket pair.

``python -m ddlflow.engines.pool_worker SYS_PATH --tasks-fd N``, or `serve` of a fresh interpreter.
"""

import json
import os
import pickle
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from ddlflow.engines.mapping import call, failed
from ddlflow.errors import EngineError

OPTION = "--tasks-fd"


def serve(descriptor: int) -> None:
    """A worker's life: work through what comes until the connection ends."""
    # Ctrl-C reaches the whole foreground group; what then happens is the driver's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # A thread of its own receives, so that driver and worker never both wait to send, and the
    # driver's death ends the worker in the middle of an item.
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    while True:
        payload = tasks.get()
        outcome = call(_unpickle_and_apply, payload)
        try:
            text = pickle.dumps(outcome)
        except Exception as error:
            text = pickle.dumps(failed(EngineError(f"A result cannot be sent back: {error}")))
        connection.send_bytes(text)


def _receive(connection: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            tasks.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def _unpickle_and_apply(payload: bytes) -> Any:
    function, item = pickle.loads(payload)  # noqa: S301 - from the driver that started us
    return function(item)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    serve(int(sys.argv[sys.argv.index(OPTION) + 1]))
