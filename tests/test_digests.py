"""The bits of four trainings, kept: a change that means to keep results keeps these.

The digests were taken before anything of this issue was changed, one worker, one thread. Another
class of processor, or another PyTorch, has other last bits: there the losses stand in for them.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from ddlflow import stages
from ddlflow.report.screen import Screen
from ddlflow.session import Session
from ddlflow.spec.load import load
from ddlflow.train.facts import facts_here

MACHINE, TORCH = "x86_64 AVX512", "2.13.0"
DIGITS: dict[str, Any] = {
    "name": "digits",
    "data": {"source": "digits.parquet", "label": "label", "seed": 7},
    "model": {"use": "mlp", "hidden": [32], "dropout": 0.3},
    "train": {
        "objective": "multiclass",
        "epochs": 10,
        "batch_rows": 100,
        "virtual_ranks": 3,
        "seed": 7,
    },
}


@dataclass(frozen=True)
class Known:
    """What a training gave: the digest of its weights, steps, last losses."""

    digest: str
    steps: int
    loss: float
    val_loss: float


KNOWN = {
    "quickstart": Known(
        "51b6bac0fc4b9a52376367a37d724b935840d14831262efffba53477aa1593cb",
        860,
        0.5639035269419352,
        0.5566400390625,
    ),
    "higgs-sample": Known(
        "0dd87762d1702f9d281e91aa81c431386bef6138af127ae9ebddc022a66dafa0",
        1890,
        0.5397712550087581,
        0.5928165544782366,
    ),
    "particles": Known(
        "fbe98f674ef9364295116554b0e038bc45ff364b35e8e00440fe10f5490187fb",
        6400,
        0.25595817694664,
        0.2687174560546875,
    ),
    "digits": Known(
        "5eb8e2b49a6700a73b2da9da0b71d8a9cd07c6e10728fbcec28cf7f5c111a3f3",
        150,
        0.8381613888670856,
        0.6655514187222,
    ),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_training_keeps_its_bits(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    data_root, pipeline = tmp_path, name
    if name == "higgs-sample":
        data_root = request.getfixturevalue("real_data")
    if name == "digits":
        bunch = load_digits()
        pixels = {f"p{k}": bunch.data[:, k] for k in range(64)}
        pq.write_table(pa.table(pixels | {"label": bunch.target}), tmp_path / "digits.parquet")
        pipeline = str(tmp_path / "digits.yaml")
        Path(pipeline).write_text(yaml.safe_dump(DIGITS))
    site = {
        "engine": {"use": "local", "workers": 1, "threads": 1},
        "device": "cpu",
        "data_root": str(data_root),
        "storage": str(tmp_path / "storage"),
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))

    with Session(load(pipeline, str(tmp_path / "site.yaml"), []), Screen(io.StringIO())) as session:
        trained = stages.train(session, stages.prepare(session)).value

    known, last = KNOWN[name], trained["history"][-1]
    assert trained["steps"] == known.steps
    if facts_here()["processor"] == MACHINE and torch.__version__.split("+")[0] == TORCH:
        assert trained["model_digest"] == known.digest
    assert last["loss"] == pytest.approx(known.loss, rel=2e-2)
    assert last["val_loss"] == pytest.approx(known.val_loss, rel=2e-2)
