"""Shards and weights of whole data sets on Spark, byte for byte those of the local engine."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

README = Path(__file__).parents[1] / "README.md"
OWN_ROWS = {"validation": 0, "test": 0}
PIPELINES: dict[str, Any] = {
    "mnist": {
        "data": {
            "source": "mnist/train.parquet",
            "test_source": "mnist/test.parquet",
            "label": "label",
            "split": OWN_ROWS,
        },
        "model": {"use": "mlp", "hidden": [32]},
        "train": {"objective": "multiclass", "epochs": 1, "batch_rows": 600},
    },
    "vowels": {
        "data": {
            "source": "vowels/japanese-vowels-train.parquet",
            "test_source": "vowels/japanese-vowels-test.parquet",
            "label": "label",
            "features": ["sequence"],
            "split": OWN_ROWS,
        },
        "model": {"use": "net:Vowels"},
        "train": {"objective": "multiclass", "epochs": 3, "batch_rows": 30},
    },
}


def trained(
    folder: Path, pipeline: str, data: Path, engine: dict[str, Any], *changes: str
) -> tuple[dict[str, str], str]:
    """The hashes of the shards, and the digest of the model."""
    site = folder / f"{engine['use']}.yaml"
    site.write_text(
        yaml.safe_dump(
            {
                "engine": {"threads": 1, **engine},
                "device": "cpu",
                "data_root": str(data),
                "storage": str(folder / engine["use"]),
            }
        )
    )
    request = load(pipeline, str(site), [*changes, "train.virtual_ranks=2"])
    with Session(request, Screen(io.StringIO())) as session:
        prepared = stages.prepare(session)
        result = stages.train(session, prepared).value
    files = sorted(path for path in Path(prepared.folder, "shards").rglob("*") if path.is_file())
    assert files
    names = {str(path.relative_to(prepared.folder)): path for path in files}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}
    return found, result.model_digest


@pytest.mark.parametrize("name", ["quickstart", "higgs-sample", "mnist", "vowels"])
def test_spark_gives_the_bytes_of_local(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    data = tmp_path if name == "quickstart" else request.getfixturevalue("real_data")
    pipeline, changes = name, ["train.epochs=1"]
    if name in PIPELINES:
        (net,) = re.findall(r"```python\n([^`]*class Vowels[^`]*)```", README.read_text())
        (tmp_path / "net.py").write_text(net)
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"name": name, **PIPELINES[name]}))
        pipeline, changes = str(path), []
    here = trained(tmp_path, pipeline, data, {"use": "local", "workers": 1}, *changes)
    there = trained(tmp_path, pipeline, data, {"use": "spark", "workers": 2}, *changes)
    assert there == here
