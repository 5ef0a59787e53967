"""Peak memory of each stage with 5 M and with 20 M rows.

Measured from /proc: the sum over the command and all its descendants of RssAnon (memory that is no
page cache: mapped files are not counted), read every 50 ms; the greatest sum of each stage.

    python benchmarks/memory.py [--small 5000000] [--large 20000000]
"""

import argparse
import json
import threading
import time
from pathlib import Path

import data
import psutil


class Peak:
    """The greatest anonymous memory of this process and its descendants, by stage."""

    def __init__(self) -> None:
        self.stage, self.peaks = "", dict[str, float]()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.05):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    continue
                for line in status.splitlines():
                    if line.startswith("RssAnon:"):
                        total += int(line.split()[1]) * 1024
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), total)


def measure(rows: int) -> dict[str, float]:
    """Runs the stages in this process on the local engine; MB by stage."""
    from ddlflow.report.screen import Screen
    from ddlflow.runs import stages
    from ddlflow.runs.session import Session
    from ddlflow.spec.load import Request
    from ddlflow.spec.pipeline import Pipeline
    from ddlflow.spec.site import Site

    source = data.collider(rows)
    pipeline = Pipeline.model_validate(
        {
            "name": "memory",
            "data": {"source": str(source), "label": "label"},
            "model": {"use": "mlp", "hidden": [100]},
            "train": {"objective": "binary", "epochs": 1, "batch_rows": 14_000},
        }
    )
    site = Site.model_validate(
        {
            "engine": {"use": "local", "workers": 2},
            "storage": str(data.ROOT / "memory"),
            "device": "cpu",
        }
    )
    here = Path.cwd()
    peak = Peak()
    with Session(Request(pipeline, site, here, here, here), Screen(), fresh=True) as session:
        peak.stage = "prepare"
        prepared = stages.prepare(session)
        peak.stage = "train"
        trained = stages.train(session, prepared)
        peak.stage = "evaluate"
        stages.evaluate(session, prepared, trained)
        peak.stage = "infer"
        stages.infer(session, prepared, trained)
        peak.stage = ""
        time.sleep(0.2)
    return {stage: value / 1e6 for stage, value in peak.peaks.items() if stage}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", type=int, default=5_000_000)
    parser.add_argument("--large", type=int, default=20_000_000)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only)))
        return
    import subprocess
    import sys

    found = []
    for rows in (options.small, options.large):
        command = [sys.executable, __file__, "--only", str(rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"peak memory, page cache apart, MB: {options.small:,} and {options.large:,} rows")
    for stage in found[0]:
        small, large = found[0][stage], found[1][stage]
        print(f"{stage} | {small:,.0f} | {large:,.0f} | {large / small:.2f}")


if __name__ == "__main__":
    main()
