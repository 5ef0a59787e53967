"""A whole script with real Prefect and MLflow: a frame in, a model, predictions beside it."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import ddlflow

warnings.simplefilter("ignore")
random = np.random.default_rng(0)
frame = pd.DataFrame({"zip": random.choice(["01234", "12345"], 400), "b": random.normal(size=400)})
frame["y"] = np.where(frame["zip"] == "01234", "in", "out")
frame = frame.sample(frac=1, random_state=1)
pipeline = {
    "name": "script",
    "data": {"source": frame, "label": "y"},
    "model": {"use": "mlp", "hidden": (8,)},
    "train": {
        "objective": "binary",
        "epochs": 8,
        "batch_rows": 20,
        "optimizer": {"use": "adam", "lr": 0.02},
    },
}
site = {"engine": {"use": "local", "workers": 1, "threads": 1}, "storage": Path("kept")}
site["tracking"] = {"uri": f"sqlite:///{Path.cwd()}/mlflow.db"}
result = ddlflow.run(pipeline, on=site)
again = ddlflow.run(pipeline, on=site, source=frame)
for model in (result, result["model"], result["model_uri"]):
    frame["said"] = ddlflow.load_model(model, on=site).predict_frame(frame)["prediction"]
frame.drop(columns="y").to_csv("new.csv", index=False)
done = ddlflow.predict(result, "new.csv", out="out", on=site, keys=["zip"])
found = pd.read_parquet("out")
print(json.dumps({
    "right": [
        (frame["said"] == frame["y"]).mean(),
        (found["prediction"] == frame["y"].to_numpy()).mean(),
    ],
    "zip": sorted(set(found["zip"])),
    "of": done["probability_of"],
    "split": sorted(set(pd.read_parquet(result["predictions"])["split"])),
    "cached": [stage["cached"] for stage in again["stages"]],
    "run_id": result["run_id"],
}))
"""


@pytest.mark.long
def test_a_script_with_a_frame(tmp_path: Path, prefect_database: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["right"] == [1.0, 1.0]
    assert said["zip"] == ["01234", "12345"]
    assert said["of"] == "out"
    assert said["split"] == ["test", "train", "validation"]
    assert said["cached"] == [True] * 4
    assert len(list((tmp_path / "kept/tables").iterdir())) == 1
    with contextlib.closing(sqlite3.connect(prefect_database)) as database:
        names = [name for (name,) in database.execute("select name from flow_run")]
    assert names.count("script on given") == 2  # of this script's runs; others share the server
