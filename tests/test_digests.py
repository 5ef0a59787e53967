"""The bits of four trainings and a fused search, kept: who means to keep results keeps these.

One worker, one thread. Another class of processor, or another PyTorch, has other last bits: there
the losses stand in for them.

They changed once, on 2026-11-27: each virtual rank has a lane of the order of its own, and the
gradient of a global batch is divided by its items after the sum, not before; plain mlps and linear
models have it by hand, in blocks of rows.
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

from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.sweep.choose.space import settings
from ddlflow.sweep.choose.table import TrialRow
from ddlflow.sweep.fused.plan import plan_stacks
from ddlflow.sweep.member import Member, Result
from ddlflow.sweep.place import Where, prepared_at
from ddlflow.sweep.run import Piece, start
from ddlflow.train.auto import resolve
from ddlflow.train.facts import facts_here
from ddlflow.train.saved.digests import digest

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
SEARCH: dict[str, Any] = DIGITS | {
    "train": DIGITS["train"] | {"epochs": 3},
    "search": {
        "method": "grid",
        "space": {"train.optimizer.lr": [0.001, 0.003, 0.01], "model.hidden": [[32], [16, 8]]},
    },
    "sweep": {"fuse": "always"},
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
        "241543c97992c81e6c19ae05923ca1d7fca0b7b9598e3e44d4510b1494deaacb",
        860,
        0.5644241942087809,
        0.556698828125,
    ),
    "higgs-sample": Known(
        "b31d9bddf933463fdaf66ee09a6cc78a9599ae752a5832c2d63ed4cebdec159c",
        1890,
        0.5458738551064143,
        0.5893276977539063,
    ),
    "particles": Known(
        "9c18eb0688d16396d76ae0d3b133a2292e51d9c9af043e897556cac65c19fa46",
        6400,
        0.2562288666725159,
        0.268777685546875,
    ),
    "digits": Known(
        "a04ab25b62ccbbe05825ee77dfc6b1e38e31ba2e88b4fefb248a903a158a5fa1",
        150,
        0.8451071907101859,
        0.6572546217176649,
    ),
}


# Of the search's six members: one digest of all their weights, and each one's last val_loss.
KNOWN_SEARCH = "15227554e7b7868991d7e965ef9b53ced37cf2f269c0b640a3f87bacd7359d99"
KNOWN_LOSSES = [
    1.5744272867838542,
    2.3274561564127603,
    0.7122485690646702,
    1.959400431315104,
    0.17147592968410916,
    1.2388409084743923,
]


def write(folder: Path, pipeline: dict[str, Any], data_root: Path) -> tuple[str, str]:
    """The digits, a pipeline on them, and a site of one worker with one thread."""
    bunch = load_digits()
    pixels = {f"p{k}": bunch.data[:, k] for k in range(64)}
    pq.write_table(pa.table(pixels | {"label": bunch.target}), folder / "digits.parquet")
    site = {
        "engine": {"use": "local", "workers": 1, "threads": 1},
        "device": "cpu",
        "data_root": str(data_root),
        "storage": str(folder / "storage"),
    }
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    (folder / "digits.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return str(folder / "digits.yaml"), str(folder / "site.yaml")


def has_these_bits() -> bool:
    """Whether this machine is of the class that the digests were taken on."""
    return facts_here().processor == MACHINE and torch.__version__.split("+")[0] == TORCH


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_training_keeps_its_bits(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    data_root = request.getfixturevalue("real_data") if name == "higgs-sample" else tmp_path
    digits, site = write(tmp_path, DIGITS, data_root)
    pipeline = digits if name == "digits" else name

    with Session(load(pipeline, site, []), Screen(io.StringIO())) as session:
        trained = stages.train(session, stages.prepare(session)).value

    known, last = KNOWN[name], trained.history[-1]
    assert trained.steps == known.steps
    if has_these_bits():
        assert trained.model_digest == known.digest
    assert last["loss"] == pytest.approx(known.loss, rel=2e-2)
    assert last["val_loss"] == pytest.approx(known.val_loss, rel=2e-2)


def test_a_fused_search_keeps_its_bits(tmp_path: Path) -> None:
    pipeline, site = write(tmp_path, SEARCH, tmp_path)
    told: list[TrialRow] = []
    with Session(load(pipeline, site, []), Screen(io.StringIO())) as session:
        prepared = stages.prepare(session)
        searched = sweeps.search(session, prepared, told.append).value
        request = session.request.pipeline
    assert (searched.trainings, searched.fused) == (6, 6)
    told.sort(key=lambda row: row.number)

    # A search keeps no weights: its members once more, as its worker trains them.
    rows = prepared.value.rows
    members = []
    for row in told:
        setting = settings(request, row.values)
        train = resolve(setting.train, rows["train"], rows["validation"])
        members.append(Member(str(row.number), setting.model, train))
    where = prepared_at(Where(prepared.folder, None, "cpu", 1), members, 0)
    found: dict[str, Result] = {}
    torch.set_flush_denormal(True)
    try:
        for group in plan_stacks(members, where, fuse="always"):
            assert group.apart is None
            stack = start(Piece(group.members, True, ""), where)
            while stack.alive:
                stack.run_epoch()
            found |= stack.results
    finally:
        torch.set_flush_denormal(False)

    assert {result.fused for result in found.values()} == {3}
    losses = [found[member.id].history[-1]["val_loss"] for member in members]
    scores = [found[member.id].metrics[searched.metric] for member in members]
    assert scores == pytest.approx([row.score for row in told], rel=1e-6)
    if has_these_bits():
        tensors = {
            f"{id_}.{name}": tensor
            for id_, result in found.items()
            for name, tensor in (result.tensors or {}).items()
        }
        assert digest(tensors) == KNOWN_SEARCH
    assert losses == pytest.approx(KNOWN_LOSSES, rel=2e-2)
