"""A plain script (no ``if __name__ == "__main__"``) that uses an engine; for tests of its end.

Usage: driver.py ENGINE WHAT FOLDER, where ENGINE is local, dask or a scheduler's address, and WHAT
is close, hang or interrupt.
"""

import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from ddlflow.engines import GangEvent, GangJob, open_engine
from ddlflow.rank_protocol import RankSaid, event_line
from ddlflow.spec.site import Site

use, what, folder = sys.argv[1:]
ranks = str(Path(__file__).parent / "ranks")
sys.path.insert(0, ranks)

import data_work  # noqa: E402 - it is on the path only now

asked = threading.Event()
signal.signal(signal.SIGINT, lambda *_: asked.set())


def tell(name: str, **values: Any) -> None:
    print(event_line(RankSaid(name, values)), flush=True)


def pass_on(heard: GangEvent) -> None:
    print(event_line(heard.event), flush=True)


def job(module: str, **payload: Any) -> GangJob:
    return GangJob(module, payload, 1, folder, {}, (ranks,), 60.0, preload=("json",))


place = {"use": "dask", "address": use, "workers": 2} if "://" in use else {"use": use}
with open_engine(Site(engine=place), slots=2, threads=1) as engine:
    squares = list(engine.map(data_work.square, range(4)))
    children = [child.pid for child in psutil.Process().children(recursive=True)]
    tell("squares", squares=squares, children=children)
    if what == "close":
        result = engine.gang(job("meet"), 2)
        next(engine.map(data_work.square, range(100)))
    elif what == "hang":
        result = engine.gang(job("fail"), 2, on_event=pass_on)
    else:
        flag = str(Path(folder) / "flag")
        result = engine.gang(job("stop", flag=flag), 2, on_event=pass_on, stop=asked)
    tell("end", stopped=result.stopped, values=result.values)
# Python's own resource tracker, started with the first spawned process, lives as long as we do, and
# so does what the next engine's ranks would be forked from, and Spark's Java with its daemon.
children_left = psutil.Process().children(recursive=True)
running = [child for child in children_left if child.status() != psutil.STATUS_ZOMBIE]
left = {child.pid: " ".join(child.cmdline()) for child in running}
others = [
    line
    for line in left.values()
    if not re.search("resource_tracker|fork_server|SparkSubmit|pyspark.daemon", line)
]
tell("closed", left=others, pids=list(left))
