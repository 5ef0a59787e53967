"""Ray Tune: a trial is the training of one fold with one learning rate, with one processor.

    python benchmarks/peers/ray_tune.py ROWS.npz --settings 4 [--reuse]

What is not counted: the start of Ray, and a first search that starts its worker processes. The
rows lie in Ray's shared memory, the loggers of each trial are off. With --reuse the trials are a
class that says how it is given new settings, so that Ray keeps its actors; without it they are a
function, as Ray's guides begin.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the workers find expert.py

import expert
import numpy as np
import ray
from ray import tune


def one_trial(config: dict[str, Any], rows: dict[str, np.ndarray]) -> dict[str, float]:
    return {"auroc": expert.train(**rows, **config)}


class KeptActor(tune.Trainable):
    """The same as a class whose actor takes one trial after another."""

    def setup(self, config: dict[str, Any], rows: dict[str, np.ndarray]) -> None:
        self.own, self.rows = config, rows

    def step(self) -> dict[str, Any]:
        return {"auroc": expert.train(**self.rows, **self.own), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: Ray asks for one at the end of each trial."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.own = new_config
        return True


def search(rows: dict[str, np.ndarray], rates: list[float], batch_rows: int, reuse: bool) -> Any:
    trainable = tune.with_parameters(KeptActor if reuse else one_trial, rows=rows)
    space = {
        "lr": tune.grid_search(rates),
        "fold": tune.grid_search(list(range(expert.FOLDS))),
        "batch_rows": batch_rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        return tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(metric="auroc", mode="max", reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows")
    parser.add_argument("--settings", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--reuse", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.rows) as saved:
        rows = {"features": saved["features"], "label": saved["label"]}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    search(rows, [0.001], arguments.batch, arguments.reuse)
    rates = np.geomspace(1e-4, 1e-2, arguments.settings).tolist()
    began = time.perf_counter()
    found = search(rows, rates, arguments.batch, arguments.reuse)
    seconds = time.perf_counter() - began
    assert not found.errors, found.errors
    by_rate: dict[float, list[float]] = {}
    for one in found:
        by_rate.setdefault(one.config["lr"], []).append(one.metrics["auroc"])
    best = max(float(np.mean(scores)) for scores in by_rate.values())
    print(json.dumps({"trainings": len(found), "seconds": seconds, "auroc": best}))
    ray.shutdown()


if __name__ == "__main__":
    main()
