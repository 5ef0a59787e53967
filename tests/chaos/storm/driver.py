"""The command of one training, as a process of its own that can be killed and given again.

python driver.py PIPELINE SITE [--record] [KEY=VALUE...]: prepares and trains, and writes what is
told as JSON lines to standard output. With --record it keeps an MLflow run, as `ddlflow run` does.
"""

import contextlib
import json
import os
import sys
from typing import Any

from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.record import recorded
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

# What else prints (MLflow does) goes to the log.
OUTPUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def tell(event: dict[str, Any]) -> None:
    print(json.dumps(event), file=OUTPUT, flush=True)


def main(pipeline: str, site: str, *changes: str) -> None:
    record = "--record" in changes
    request = load(pipeline, site, [change for change in changes if change != "--record"])
    with Session(request, Screen(sys.stderr)) as session:
        prepared = stages.prepare(session)
        with recorded(session, prepared) if record else contextlib.nullcontext() as run:

            def tell_all(event: dict[str, Any]) -> None:
                tell(event)
                if run is not None:
                    run.tell(event)

            trained = stages.train(session, prepared, tell_all)
            if run is not None:
                run.trained(trained)
    tell({"event": "done", "folder": trained.folder, "value": trained.value})


if __name__ == "__main__":
    main(*sys.argv[1:])
