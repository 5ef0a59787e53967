"""Ranks that wait for ever, but for one, which ends as its payload says."""

import os
import signal
import sys
import time
import traceback

import talk

talk.end_with_the_worker()
if talk.PAYLOAD.get("silent_rank") == talk.RANK:
    time.sleep(600)
talk.emit("ready", pid=os.getpid(), worker_pid=talk.WORKER_PID)
how = talk.PAYLOAD.get("how") if talk.PAYLOAD.get("rank", 0) == talk.RANK else None
talk.emit("progress", step=3)


def fail(error: Exception) -> None:
    """What train/rank.py does with an exception."""
    try:
        raise error
    except Exception as caught:
        text = traceback.format_exc()
        talk.emit("error", kind=type(caught).__name__, message=str(caught), traceback=text)
        sys.exit(1)


if how == "raise":
    fail(ValueError("the third row is odd"))
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "exit":
    print("the last words")
    sys.exit(3)
if how == "no_result":
    sys.exit(0)
if how == "kill_worker":
    time.sleep(0.5)  # its events are on their way
    os.kill(talk.WORKER_PID, signal.SIGKILL)
if how == "garbage":
    os.write(int(sys.argv[2]), b"this is no event\n")
if "peer_error_rank" in talk.PAYLOAD and talk.PAYLOAD["peer_error_rank"] == talk.RANK:
    fail(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
if "late_kill_rank" in talk.PAYLOAD and talk.PAYLOAD["late_kill_rank"] == talk.RANK:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
