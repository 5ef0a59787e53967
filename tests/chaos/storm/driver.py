"""The command of one training, as a process of its own that can be killed and given again.

python driver.py PIPELINE SITE [--record] [KEY=VALUE...]: prepares and trains, and writes what is
told as JSON lines to standard output. With --record it keeps an MLflow run, as `ddlflow run` does.
"""

import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.events import TrainEvent
from ddlflow.runs.record import recorded
from ddlflow.runs.result_json import to_json
from ddlflow.runs.results import TrainAttempt
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.train.events import DigestMarked, EpochEnded

# What else prints (MLflow does) goes to the log.
OUTPUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def tell(kind: str, values: dict[str, Any]) -> None:
    print(json.dumps({"event": kind, **values}), file=OUTPUT, flush=True)


def tell_event(event: TrainEvent) -> None:
    match event:
        case EpochEnded():
            tell("epoch", event.row)
        case DigestMarked():
            tell("digest", asdict(event))
        case TrainAttempt():
            tell("attempt", {k: v for k, v in asdict(event).items() if v is not None})


def main(pipeline: str, site: str, *changes: str) -> None:
    record = "--record" in changes
    request = load(pipeline, site, [change for change in changes if change != "--record"])
    with Session(request, Screen(sys.stderr)) as session:
        prepared = stages.prepare(session)
        with recorded(session, prepared) if record else contextlib.nullcontext() as run:

            def tell_all(event: TrainEvent) -> None:
                tell_event(event)
                if run is not None:
                    run.on_train_event(event)

            trained = stages.train(session, prepared, tell_all)
            if run is not None:
                run.trained(trained)
    tell("done", {"folder": trained.folder, "value": to_json(trained.value)})


if __name__ == "__main__":
    main(*sys.argv[1:])
