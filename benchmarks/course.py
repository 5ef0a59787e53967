"""The course's job: 7.65 M rows x 10 epochs, batch 14,000, mlp [100].

Its users trained it in 15 min 5 s on ten BigDL cores (84,500 rows/s). Here: the stages as
``ddlflow run`` runs them, on this machine.

    python benchmarks/course.py
"""

import time
from pathlib import Path

import data

from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.record import rows_per_s
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

ROWS, COURSE_ROWS_PER_S = 7_650_000, 84_500


def main() -> None:
    pipeline = Pipeline.model_validate(
        {
            "name": "course",
            "data": {
                "source": str(data.collider(ROWS)),
                "label": "label",
                "split": {"validation": 0, "test": 0},
            },
            "model": {"use": "mlp", "hidden": [100]},
            "train": {"objective": "binary", "epochs": 10, "batch_rows": 14_000},
        }
    )
    site = Site.model_validate({"storage": str(data.ROOT / "course"), "device": "cpu"})
    here = Path.cwd()
    with Session(Request(pipeline, site, here, here, here), Screen(), fresh=True) as session:
        prepared = stages.prepare(session)
        began = time.perf_counter()
        trained = stages.train(session, prepared)
        seconds = time.perf_counter() - began
    speed = rows_per_s(trained)
    print(
        f"{ROWS:,} rows x 10 epochs: prepare {prepared.seconds:.1f} s, train {seconds:.1f} s with "
        f"the ranks' start, {speed:,.0f} rows/s, {speed / COURSE_ROWS_PER_S:.1f} x the course's"
    )


if __name__ == "__main__":
    main()
