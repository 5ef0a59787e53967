"""The rank's side of the protocol, as small as it can be, for the rank programs beside it."""

import json
import os
import sys
import threading
from typing import Any

_pipe = int(sys.argv[sys.argv.index("--events-fd") + 1])
_first = json.loads(sys.stdin.buffer.readline())
RANK: int = _first["rank"]
WORLD: int = _first["world"]
WORKER_PID: int = _first["worker_pid"]
PAYLOAD: dict[str, Any] = _first["payload"]


def emit(event: str, **more: Any) -> None:
    """Send an event to the driver."""
    os.write(_pipe, json.dumps({"event": event, **more}).encode() + b"\n")


def read_store() -> dict[str, Any]:
    """The second line of standard input: where rank 0's store is."""
    return json.loads(sys.stdin.buffer.readline())


def end_with_the_worker() -> None:
    """From now on the end of standard input ends the process."""

    def wait() -> None:
        # Not sys.stdin: a thread inside it at the interpreter's end aborts the process.
        os.read(0, 1)
        os._exit(9)

    threading.Thread(target=wait, daemon=True).start()
